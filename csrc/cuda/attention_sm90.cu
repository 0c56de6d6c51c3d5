#include <algorithm>
#include <vector>

#include "cuda/attention_sm90.h"
#include "cuda/attention_sm90_kernel.h"
#include "cuda/dispatch.h"

namespace afnext::cuda {
namespace {

bool serves(const Call& call, const TensorView& q, const TensorView& k, const TensorView& v,
            const AttentionOptions& options) {
  const int64_t dim = q.shape[2];
  return call.device().sm == 90 && (q.dtype == DType::bf16 || q.dtype == DType::f16) &&
         (dim == 64 || dim == 128) && k.shape[0] > 0 && options.scale > 0 && rows_align(q) &&
         rows_align(k) && rows_align(v);
}

int window_side(int64_t width) {
  return width < 0 ? sm90::Band::kUnlimited
                   : static_cast<int>(std::min<int64_t>(width, sm90::Band::kUnlimited));
}

std::vector<sm90::Sequence> sequences_of(const TensorView& q, const TensorView& k,
                                         const AttentionOptions& options) {
  const auto data = [](const TensorView* t) { return t ? t->as<int32_t>() : nullptr; };
  const int32_t* queries = data(options.cu_seqlens_q);
  const int32_t* keys = data(options.cu_seqlens_k);
  const int32_t* lengths = data(options.key_lengths);
  const int left = window_side(options.window_left);
  const int right = options.causal ? 0 : window_side(options.window_right);
  const int64_t count = queries ? options.cu_seqlens_q->shape[0] - 1 : 1;
  std::vector<sm90::Sequence> sequences;
  sequences.reserve(count);
  for (int64_t n = 0; n < count; ++n) {
    const int first_query = queries ? queries[n] : 0, first_key = keys ? keys[n] : 0;
    const int end_query = queries ? queries[n + 1] : static_cast<int>(q.shape[0]);
    const int end_key = keys ? keys[n + 1] : static_cast<int>(k.shape[0]);
    const int seen = lengths ? lengths[n] : end_key - first_key;
    sequences.push_back({first_query, first_key, {end_query - first_query, seen, left, right}});
  }
  return sequences;
}

// All rows of all sequences, `rows` an item, the longest first: of all heads or, where their keys
// and values do not fit into the L2 together, of one head after another.
std::vector<sm90::Item> items_of(const std::vector<sm90::Sequence>& sequences,
                                 const sm90::Params& p, int rows, bool heads_apart) {
  struct Sized {
    sm90::Item item;
    int length;
  };
  std::vector<Sized> sized;
  for (size_t n = 0; n < sequences.size(); ++n) {
    const sm90::Band& band = sequences[n].band;
    const int end_row = band.queries * p.group;
    for (int first = 0; first < end_row; first += rows) {
      const int last = std::min(first + rows, end_row) - 1;
      const int length = band.end(last / p.group) - band.first(first / p.group);
      for (int head = 0; head < p.kv_heads; ++head) {
        sized.push_back({{static_cast<int>(n), head, first}, length});
      }
    }
  }
  std::stable_sort(sized.begin(), sized.end(), [&](const Sized& a, const Sized& b) {
    if (heads_apart && a.item.kv_head != b.item.kv_head) return a.item.kv_head < b.item.kv_head;
    return a.length > b.length;
  });
  std::vector<sm90::Item> items;
  items.reserve(sized.size());
  for (const Sized& one : sized) items.push_back(one.item);
  return items;
}

// Keys or values [tokens, heads, dim] as [heads, pieces, tokens, 64 channels], so that one copy
// brings a tile's pieces one after another.
template <int kDim>
arch::TensorMap tile_map(const TensorView& t) {
  constexpr uint64_t kBytes = 2, kPieces = kDim / sm90::kPiece;
  const auto tokens = static_cast<uint64_t>(t.shape[0]), heads = static_cast<uint64_t>(t.shape[1]);
  // Nobody steps along a single one, but its stride is checked all the same.
  const uint64_t token_stride = tokens == 1 ? kDim : static_cast<uint64_t>(t.stride[0]);
  const uint64_t head_stride = heads == 1 ? kDim : static_cast<uint64_t>(t.stride[1]);
  const uint64_t sizes[] = {sm90::kPiece, tokens, kPieces, heads};
  const uint64_t strides[] = {token_stride * kBytes, sm90::kPiece * kBytes, head_stride * kBytes};
  const uint32_t box[] = {sm90::kPiece, sm90::Shape<kDim>::kKeys, kPieces, 1};
  return arch::make_tensor_map(t.data, t.dtype, 4, sizes, strides, box, arch::Swizzle::bytes128);
}

template <typename T, int kDim>
void run(const Call& call, const TensorView& k, const TensorView& v,
         const std::vector<sm90::Sequence>& sequences, sm90::Params p) {
  using S = sm90::Shape<kDim>;
  const size_t key_bytes = 2 * k.numel() * sizeof(T);
  const std::vector<sm90::Item> items =
      items_of(sequences, p, S::kRows, key_bytes > call.device().l2_bytes / 2);
  if (items.empty()) return;
  const size_t sequence_bytes = sequences.size() * sizeof(sm90::Sequence);
  const size_t item_bytes = items.size() * sizeof(sm90::Item);
  const Scratch plan(call, sequence_bytes + item_bytes);
  call.upload(plan.as<char>(), sequences.data(), sequence_bytes);
  call.upload(plan.as<char>() + sequence_bytes, items.data(), item_bytes);
  p.sequences = plan.as<sm90::Sequence>();
  p.items = reinterpret_cast<const sm90::Item*>(plan.as<char>() + sequence_bytes);
  p.item_count = static_cast<int>(items.size());
  const int blocks = std::min(p.item_count, call.device().multiprocessors);
  call.launch<sm90::attention_kernel<T, kDim>>(static_cast<unsigned>(blocks), S::kThreads,
                                               sizeof(sm90::Shared<T, kDim>), p, tile_map<kDim>(k),
                                               tile_map<kDim>(v));
}

}  // namespace

bool attention_sm90(const Call& call, const TensorView& q, const TensorView& turned_k,
                    const TensorView& v, const AttentionOptions& options, const TensorView& out,
                    const TensorView& lse) {
  if (!serves(call, q, turned_k, v, options)) return false;
  const std::vector<sm90::Sequence> sequences = sequences_of(q, turned_k, options);
  const bool turning = options.inv_freq != nullptr;
  const sm90::Params p{{q.data, q.stride[0], q.stride[1]},
                       static_cast<int>(q.shape[1] / v.shape[1]),
                       static_cast<int>(v.shape[1]),
                       static_cast<int>(q.shape[0]),
                       static_cast<int>(v.shape[0]),
                       turning ? options.times_q->as<float>() : nullptr,
                       turning ? options.inv_freq->as<float>() : nullptr,
                       turning ? static_cast<int>(options.inv_freq->last()) : 0,
                       options.interleaved,
                       static_cast<float>(options.scale),
                       nullptr,
                       nullptr,
                       0,
                       out.data,
                       out.dtype == DType::f32,
                       lse.as<float>()};
  const auto with_dim = [&](auto zero) {
    using T = decltype(zero);
    if (q.shape[2] == 64) {
      run<T, 64>(call, turned_k, v, sequences, p);
    } else {
      run<T, 128>(call, turned_k, v, sequences, p);
    }
  };
  q.dtype == DType::bf16 ? with_dim(bf16{}) : with_dim(f16{});
  return true;
}

}  // namespace afnext::cuda
