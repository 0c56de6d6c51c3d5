#include <algorithm>

#include "cuda/attention_sm90.h"
#include "cuda/attention_sm90_kernel.h"
#include "cuda/dispatch.h"

namespace afnext::cuda {
namespace {

// Keys or values [tokens, heads, dim] as [heads, pieces, tokens, 64 channels], so that one copy
// brings a tile's pieces one after another.
template <int kDim>
arch::TensorMap tile_map(const Heads& t, DType dtype, const AttentionParams& p) {
  constexpr uint64_t kBytes = 2, kPieces = kDim / sm90::kPiece;
  const uint64_t sizes[] = {sm90::kPiece, static_cast<uint64_t>(p.key_tokens), kPieces,
                            static_cast<uint64_t>(p.kv_heads)};
  const uint64_t strides[] = {static_cast<uint64_t>(t.token) * kBytes, sm90::kPiece * kBytes,
                              static_cast<uint64_t>(t.head) * kBytes};
  const uint32_t box[] = {sm90::kPiece, sm90::Shape<kDim>::kKeys, kPieces, 1};
  return arch::make_tensor_map(t.data, dtype, 4, sizes, strides, box, arch::Swizzle::bytes128);
}

template <typename T, int kDim>
void run(const Call& call, DType dtype, AttentionPlan& plan) {
  using S = sm90::Shape<kDim>;
  const AttentionParams& p = plan.params(S::kRows);
  const int blocks = std::min(p.items, call.device().multiprocessors);
  call.launch_early<sm90::attention_kernel<T, kDim>>(
      static_cast<unsigned>(blocks), S::kThreads, sizeof(sm90::Shared<T, kDim>), p,
      tile_map<kDim>(p.k, dtype, p), tile_map<kDim>(p.v, dtype, p));
}

template <typename T>
void run(const Call& call, const TensorView& q, AttentionPlan& plan) {
  q.shape[2] == 64 ? run<T, 64>(call, q.dtype, plan) : run<T, 128>(call, q.dtype, plan);
}

}  // namespace

bool attention_sm90(const Call& call, const TensorView& q, const TensorView& k, const TensorView& v,
                    const AttentionOptions& options, const TensorView& out, AttentionPlan& plan) {
  const int64_t dim = q.shape[2];
  const bool turns_by_words =
      options.inv_freq == nullptr || options.interleaved || options.inv_freq->last() % 2 == 0;
  const bool serves = call.device().sm == 90 && q.dtype != DType::f32 &&
                      (dim == 64 || dim == 128) && rows_align(q) && rows_align(out) &&
                      turns_by_words && k.shape[0] > 0 && heads_of(k).steps() &&
                      heads_of(v).steps() && options.scale > 0;
  if (!serves) return false;
  q.dtype == DType::bf16 ? run<bf16>(call, q, plan) : run<f16>(call, q, plan);
  return true;
}

}  // namespace afnext::cuda
