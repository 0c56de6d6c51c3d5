// Backward attention: weights are computed again from the log-sum-exp (FlashAttention, Dao et al.
// 2022). A tile of keys owns its gradients while all queries pass by; a query's gradient is summed
// in float32 over the tiles in their order, and over parts of the sequence in theirs.
#include "cpu/attention_backward.h"

#include "cpu/attention_backward_meet.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// Where a KV head's rows begin, in units of a row of working memory laid out by blocks.
int64_t first_row(const AttentionProblem& p, const AttentionSequence& s, int64_t head) {
  return s.first_row * p.kv_heads + head * s.rows;
}

float* deltas_of(const AttentionBackwardArgs& a, const Block& block) {
  const int64_t row = first_row(*block.problem, *block.sequence, block.kv_head) + block.row;
  return a.deltas + row * delta_rows(block.problem->dim);
}

template <typename How>
void deltas(const AttentionBackwardArgs& a, const AttentionItem& item) {
  How how(a);
  Block block;
  for (int64_t row = item.first; row < item.end; row += kBlockRows) {
    block.set(a.problem, a.problem.sequences[item.sequence], item.kv_head, row, item.end);
    how.deltas(block, deltas_of(a, block));
  }
}

template <typename How>
void set_rows(const AttentionBackwardArgs& a, Queries& q) {
  const Block& block = q.block;
  for (int64_t i = 0; i < kBlockRows; ++i) {
    const bool real = i < block.count;
    const int64_t row = real ? block.head(i) * a.problem.query_tokens + block.token(i) : 0;
    // A row that sees no key has weights of zero by its mask, whatever stands here.
    q.lse[i] = real && a.lse[row] != -__builtin_inff() ? a.lse[row] / How::kLogUnit : 0.0f;
    q.grad_lse[i] = real && a.grad_lse != nullptr ? a.grad_lse[row] : 0.0f;
  }
  q.deltas = deltas_of(a, block);
}

// Where the gradient of a KV head's rows begins in a part; blocks [width, kBlockRows] follow.
int64_t part_offset(const AttentionProblem& p, const AttentionSequence& s, int64_t head) {
  const int64_t dim = (p.dim + kDimUnit - 1) / kDimUnit * kDimUnit;
  return first_row(p, s, head) * dim;
}

// All queries pass by the keys [first, first + count), at most kTileKeys.
template <typename T, typename How>
void tile(const AttentionBackwardArgs& a, const AttentionKeyItem& item, int64_t first,
          int64_t count) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& s = p.sequences[item.sequence];
  const int64_t width = padded(p.dim), block_size = width * kBlockRows;
  float* grad_keys = scratch<float>(1, 2 * kTileKeys * width);
  float* grad_values = grad_keys + kTileKeys * width;
  __builtin_memset(grad_keys, 0, 2 * kTileKeys * width * sizeof(float));

  How how(a);
  Queries q;
  const int64_t end = first + count < s.band.keys ? first + count : s.band.keys;
  const int64_t rows = first < end ? s.band.queries * p.group : 0;
  if (rows > 0) how.read_keys({p, s, item.kv_head}, first, end - first);
  float* part = a.parts + item.part * a.part_size + part_offset(p, s, item.kv_head);
  for (int64_t row = 0; row < rows; row += kBlockRows, part += block_size) {
    q.block.set(p, s, item.kv_head, row, rows);
    if (!q.block.meets(first, end)) continue;
    set_rows<How>(a, q);
    how.read_queries(q.block);
    for (int64_t key = first; key < end; key += kPanelKeys) {
      const int64_t n = end - key < kPanelKeys ? end - key : kPanelKeys;
      if (!q.block.meets(key, key + n)) continue;
      const Panel panel{key, key - first, n};
      const Sums sums{grad_keys, grad_values, part};
      switch (q.block.vectors()) {
        case 1:
          how.template meet<1>(q, panel, sums);
          break;
        case 2:
          how.template meet<2>(q, panel, sums);
          break;
        default:
          how.template meet<3>(q, panel, sums);
      }
    }
  }

  Turn turn;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t token = s.first_key + first + j;
    float* grad_key = grad_keys + j * width;
    for (int64_t d = 0; d < width; d += kLanes)
      store(grad_key + d, load(grad_key + d) * How::key_scale(p));
    if (p.inv_freq != nullptr) {
      turn.back(token, p.times_k, p);
      rotate_row(grad_key, turn.cos, turn.sin, p.half, p.interleaved, grad_key);
    }
    const int64_t to = (token * p.kv_heads + item.kv_head) * p.dim;
    store_row(static_cast<T*>(a.grad_k) + to, grad_key, p.dim);
    store_row(static_cast<T*>(a.grad_v) + to, grad_values + j * width, p.dim);
  }
}

template <typename T, typename How>
void key_gradients(const AttentionBackwardArgs& a, const AttentionKeyItem& item) {
  const AttentionSequence& s = a.problem.sequences[item.sequence];
  const int64_t rows =
      (s.band.queries * a.problem.group + kBlockRows - 1) / kBlockRows * kBlockRows;
  __builtin_memset(a.parts + item.part * a.part_size + part_offset(a.problem, s, item.kv_head), 0,
                   rows * padded(a.problem.dim) * sizeof(float));
  for (int64_t first = item.first; first < item.end; first += kTileKeys) {
    tile<T, How>(a, item, first, item.end - first < kTileKeys ? item.end - first : kTileKeys);
  }
}

// The sum of the parts, in their order, turned back.
template <typename T>
void query_gradients(const AttentionBackwardArgs& a, const AttentionItem& item) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& s = p.sequences[item.sequence];
  const int64_t width = padded(p.dim), size = width * kBlockRows;
  float* total = scratch<float>(0, 2 * size);
  float* rows = total + size;
  Block block;
  Turn turn;
  for (int64_t row = item.first; row < item.end; row += kBlockRows) {
    block.set(p, s, item.kv_head, row, item.end);
    const float* part = a.parts + part_offset(p, s, item.kv_head) + row * width;
    for (int64_t i = 0; i < size; i += kLanes) {
      F32 value = load(part + i);
      for (int64_t n = 1; n < a.part_count; ++n) value += load(part + n * a.part_size + i);
      store(total + i, value * p.scale);
    }
    to_rows(total, width, block.vectors(), rows);
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t token = block.token(i);
      float* grad = rows + i * width;
      if (p.inv_freq != nullptr) {
        turn.back(token, p.times_q, p);
        rotate_row(grad, turn.cos, turn.sin, p.half, p.interleaved, grad);
      }
      store_row(static_cast<T*>(a.grad_q) + (token * p.kv_heads * p.group + block.head(i)) * p.dim,
                grad, p.dim);
    }
  }
}

template <typename T, typename How>
void run(const AttentionBackwardArgs& a) {
  parallel_for(a.query_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) deltas<How>(a, a.query_items[i]);
  });
  turn_keys<T, typename How::Key>(a.problem);
  parallel_for(a.key_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) key_gradients<T, How>(a, a.key_items[i]);
  });
  parallel_for(a.query_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) query_gradients<T>(a, a.query_items[i]);
  });
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& args) {
  if (args.problem.dtype == DType::f32) return run<float, InFloats<float>>(args);
  // Gradients of partial results keep what rounding them to bf16 would lose.
  if constexpr (kHasPairs) {
    if (!args.grad_out_is_float && !args.out_is_float) return run<bf16, InPairs>(args);
  }
  run<bf16, InFloats<bf16>>(args);
}

AFNEXT_REGISTER(attention_backward, AttentionBackwardArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
