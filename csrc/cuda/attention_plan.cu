#include <algorithm>

#include "cuda/attention_plan.h"
#include "cuda/turn_heads.h"

namespace afnext::cuda {
namespace {

constexpr int kUnitBytes = 16;

int bound(int64_t width) {
  return static_cast<int>(width < 0 ? Band::kUnlimited
                                    : std::min<int64_t>(width, Band::kUnlimited));
}

// Whether kernels may read heads of this tensor in units of 16 bytes.
bool in_units(const TensorView& t) {
  const int64_t size = dtype_size(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % kUnitBytes == 0 &&
         t.shape[2] * size % kUnitBytes == 0 && t.stride[0] * size % kUnitBytes == 0 &&
         t.stride[1] * size % kUnitBytes == 0;
}

Heads heads_of(const TensorView& t) { return {t.data, t.stride[0], t.stride[1]}; }

// `t` itself, or a copy in `memory` that is turned and padded.
Heads readable(const Call& call, const TensorView& t, const Turn& turn,
               std::optional<Scratch>& memory) {
  const bool needs_units = t.dtype != DType::f32;
  if (turn.inv_freq == nullptr && (!needs_units || in_units(t))) return heads_of(t);
  const int64_t size = dtype_size(t.dtype), unit = kUnitBytes / size;
  const int64_t width = (t.shape[2] + unit - 1) / unit * unit, heads = t.shape[1];
  memory.emplace(call, t.shape[0] * heads * width * size);
  turn_heads(call, t.dtype, heads_of(t), t.shape[0], static_cast<int>(heads),
             static_cast<int>(t.shape[2]), static_cast<int>(width), turn, memory->as<void>());
  return {memory->as<void>(), heads * width, width};
}

}  // namespace

AttentionPlan::AttentionPlan(const Call& call, const TensorView& q, const TensorView& k,
                             const TensorView& v, const AttentionOptions& options,
                             const TensorView& out, const TensorView& lse)
    : call_(call) {
  AttentionParams& p = params_;
  Turn turn;
  if (options.inv_freq != nullptr && options.inv_freq->last() > 0) {
    turn = {options.times_k->as<float>(), options.inv_freq->as<float>(),
            static_cast<int>(options.inv_freq->last()), options.interleaved};
    p.times_q = options.times_q->as<float>();
    p.inv_freq = turn.inv_freq;
    p.half = turn.half;
    p.interleaved = turn.interleaved;
  }
  p.q = heads_of(q);
  p.k = readable(call, k, turn, k_copy_);
  p.v = readable(call, v, {}, v_copy_);
  p.plain_q = in_units(q) && options.scale >= 0 && turn.inv_freq == nullptr;
  p.kv_heads = static_cast<int>(k.shape[1]);
  p.group = static_cast<int>(q.shape[1] / k.shape[1]);
  p.dim = static_cast<int>(q.shape[2]);
  p.query_tokens = static_cast<int>(q.shape[0]);
  p.key_tokens = static_cast<int>(k.shape[0]);
  p.scale = static_cast<float>(options.scale);
  p.out = out.data;
  p.out_is_float = out.dtype == DType::f32;
  p.lse = lse.as<float>();

  const auto* ends_q = options.cu_seqlens_q ? options.cu_seqlens_q->as<int32_t>() : nullptr;
  const auto* ends_k = options.cu_seqlens_k ? options.cu_seqlens_k->as<int32_t>() : nullptr;
  const int64_t count = ends_q ? options.cu_seqlens_q->shape[0] - 1 : 1;
  const int left = bound(options.window_left);
  const int right = options.causal ? 0 : bound(options.window_right);
  for (int64_t n = 0; n < count; ++n) {
    const int first_query = ends_q ? ends_q[n] : 0, first_key = ends_k ? ends_k[n] : 0;
    const int queries = ends_q ? ends_q[n + 1] - first_query : p.query_tokens;
    const int keys = options.key_lengths ? options.key_lengths->as<int32_t>()[n]
                     : ends_k            ? ends_k[n + 1] - first_key
                                         : p.key_tokens;
    if (queries > 0) {
      sequences_.push_back({first_query, first_key, {queries, keys, left, right}, 0});
    }
  }
  // Blocks run from the last tile to the first: the longest sequences begin.
  std::stable_sort(sequences_.begin(), sequences_.end(), [](const auto& a, const auto& b) {
    return int64_t{a.band.queries} * a.band.keys < int64_t{b.band.queries} * b.band.keys;
  });
}

const AttentionParams& AttentionPlan::params(int tile_rows) {
  AttentionParams& p = params_;
  int tiles = 0;
  for (AttentionSequence& sequence : sequences_) {
    sequence.first_tile = tiles;
    tiles += (sequence.band.queries * p.group + tile_rows - 1) / tile_rows;
  }
  p.tile_rows = tile_rows;
  p.items = tiles * p.kv_heads;
  p.sequence_count = static_cast<int>(sequences_.size());
  if (sequences_.size() == 1) {
    p.only = sequences_.front();
  } else if (!sequences_.empty()) {
    const size_t bytes = sequences_.size() * sizeof(AttentionSequence);
    on_device_.emplace(call_, bytes);
    call_.upload(on_device_->as<void>(), sequences_.data(), bytes);
    p.sequences = on_device_->as<AttentionSequence>();
  }
  return p;
}

}  // namespace afnext::cuda
