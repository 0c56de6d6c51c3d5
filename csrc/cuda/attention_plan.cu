#include <algorithm>
#include <cmath>

#include "cuda/arch/numbers.h"
#include "cuda/attention_plan.h"
#include "cuda/dispatch.h"

namespace afnext::cuda {
namespace {

int window_side(int64_t width) {
  return static_cast<int>(width < 0 ? Band::kUnlimited
                                    : std::min<int64_t>(width, Band::kUnlimited));
}

}  // namespace

std::vector<PackedSequence> sequences_of(const TensorView& q, const TensorView& k,
                                         const AttentionOptions& options) {
  const auto* queries = options.cu_seqlens_q ? options.cu_seqlens_q->as<int32_t>() : nullptr;
  const auto* keys = options.cu_seqlens_k ? options.cu_seqlens_k->as<int32_t>() : nullptr;
  const auto* lengths = options.key_lengths ? options.key_lengths->as<int32_t>() : nullptr;
  const int64_t count = queries ? options.cu_seqlens_q->shape[0] - 1 : 1;
  const int left = window_side(options.window_left);
  const int right = options.causal ? 0 : window_side(options.window_right);
  std::vector<PackedSequence> sequences;
  sequences.reserve(count);
  for (int64_t n = 0; n < count; ++n) {
    const int first_query = queries ? queries[n] : 0, first_key = keys ? keys[n] : 0;
    const int end_query = queries ? queries[n + 1] : static_cast<int>(q.shape[0]);
    const int end_key = keys ? keys[n + 1] : static_cast<int>(k.shape[0]);
    sequences.push_back(
        {first_query,
         first_key,
         end_key - first_key,
         {end_query - first_query, lengths ? lengths[n] : end_key - first_key, left, right}});
  }
  return sequences;
}

Turn turn_of(const AttentionOptions& options, const TensorView* times) {
  if (options.inv_freq == nullptr || options.inv_freq->last() == 0) return {};
  return {times->as<float>(), options.inv_freq->as<float>(),
          static_cast<int>(options.inv_freq->last()), options.interleaved};
}

AttentionPlan::AttentionPlan(const Call& call, const TensorView& q, const TensorView& k,
                             const TensorView& v, const AttentionOptions& options,
                             const TensorView& out, const TensorView& lse)
    : call_(call), k_(call, k, k.dtype, turn_of(options, options.times_k)), v_(call, v, v.dtype) {
  AttentionParams& p = params_;
  const Turn turn = turn_of(options, options.times_q);
  p.times_q = turn.times;
  p.inv_freq = turn.inv_freq;
  p.half = turn.half;
  p.interleaved = turn.interleaved;
  p.q = heads_of(q);
  p.k = k_.heads();
  p.v = v_.heads();
  p.wide_q = in_units(q) && options.scale >= 0 && (turn.interleaved || turn.half % 2 == 0);
  p.kv_heads = static_cast<int>(k.shape[1]);
  p.group = static_cast<int>(q.shape[1] / k.shape[1]);
  p.dim = static_cast<int>(q.shape[2]);
  p.query_tokens = static_cast<int>(q.shape[0]);
  p.key_tokens = static_cast<int>(k.shape[0]);
  p.scale = static_cast<float>(options.scale);
  p.scale_log2 = std::max(std::abs(p.scale), 1e-37f) * kLog2E;
  p.out = out.data;
  p.out_is_float = out.dtype == DType::f32;
  p.wide_out = rows_align(out);
  p.lse = lse.as<float>();

  for (const PackedSequence& s : sequences_of(q, k, options)) {
    if (s.band.queries > 0) sequences_.push_back({s.first_query, s.first_key, s.band, 0});
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
