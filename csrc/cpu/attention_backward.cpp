// Backward attention: weights are computed again from the log-sum-exp (FlashAttention, Dao et al.
// 2022). A tile of keys owns its gradients while all queries pass by; a query's gradient is summed
// in float32 over the tiles in their order, and over parts of the sequence in theirs.
#include "cpu/attention_backward.h"

#include "cpu/attention_block.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kPanelKeys = 64;
static_assert(Known::kStep == kDeltaStep);

// Where a KV head's rows begin, in units of a row of working memory laid out by blocks.
int64_t first_row(const AttentionProblem& p, const AttentionSequence& s, int64_t head) {
  return s.first_row * p.kv_heads + head * s.rows;
}

float* deltas_of(const AttentionBackwardArgs& a, const Block& block) {
  const int64_t row = first_row(*block.problem, *block.sequence, block.kv_head) + block.row;
  return a.deltas + row * delta_rows(block.problem->dim);
}

// delta = sum over D of grad_out * out: what the softmax takes off a row's slopes. Where one key
// has nearly all the weight the difference all but cancels; torch keeps the weights and gets it
// right. Taken off a step of D at a time, in the order of the product that it is taken off from, it
// cancels as well here, exactly so for a single key.
template <typename G, typename O>
void deltas(const AttentionBackwardArgs& a, const AttentionItem& item) {
  const AttentionProblem& p = a.problem;
  const int64_t size = padded(p.dim) * kBlockRows;
  float* rows = scratch<float>(0, 3 * size);
  float *grads = rows + size, *outs = grads + size;
  Block block;
  for (int64_t row = item.first; row < item.end; row += kBlockRows) {
    block.set(p, p.sequences[item.sequence], item.kv_head, row, item.end);
    load_rows<G>(block, a.grad_out, rows);
    to_columns(rows, padded(p.dim), block.vectors(), grads);
    load_rows<O>(block, a.out, rows);
    to_columns(rows, padded(p.dim), block.vectors(), outs);
    float* to = deltas_of(a, block);
    for (int64_t first = 0; first < p.dim; first += kDeltaStep, to += kBlockRows) {
      const int64_t end = p.dim - first < kDeltaStep ? p.dim : first + kDeltaStep;
      for (int64_t n = 0; n < kBlockRows; n += kLanes) {
        F32 sum{};
        for (int64_t at = first * kBlockRows + n; at < end * kBlockRows; at += kBlockRows)
          sum = fma(load(outs + at), load(grads + at), sum);
        store(to + n, sum);
      }
    }
  }
}

// A block of queries and what flows back into it.
struct Queries {
  Block block;
  float *rows, *columns;            // turned and scaled: [kBlockRows, width], [width, kBlockRows]
  float *grad_rows, *grad_columns;  // of the output, likewise
  const float* deltas;
  alignas(64) float lse[kBlockRows], grad_lse[kBlockRows];
};

template <typename T>
void load_block(const AttentionBackwardArgs& a, Queries& q) {
  const Block& block = q.block;
  const int64_t width = padded(a.problem.dim);
  load_queries<T>(block, q.rows, q.columns);
  a.grad_out_is_float ? load_rows<float>(block, a.grad_out, q.grad_rows)
                      : load_rows<T>(block, a.grad_out, q.grad_rows);
  to_columns(q.grad_rows, width, block.vectors(), q.grad_columns);
  for (int64_t i = 0; i < kBlockRows; ++i) {
    const bool real = i < block.count;
    const int64_t row = real ? block.head(i) * a.problem.query_tokens + block.token(i) : 0;
    // A row that sees no key has weights of zero by its mask, whatever stands here.
    q.lse[i] = real && a.lse[row] != -__builtin_inff() ? a.lse[row] : 0.0f;
    q.grad_lse[i] = real && a.grad_lse != nullptr ? a.grad_lse[row] : 0.0f;
  }
  q.deltas = deltas_of(a, block);
}

// A panel of keys and values, and the sums of their gradients [.., width].
struct Keys {
  ByRow keys, values;
  float *grad_keys, *grad_values;
  int64_t first, count;
};

// One panel meets one block of N vectors of queries.
template <int N>
void meet(const Queries& q, const Keys& k, int64_t dim, float* weights, float* slopes,
          float* grad_queries) {
  const Block& block = q.block;
  const int64_t width = padded(dim), vectors = width / kLanes;
  const bool all = block.sees_all(k.first, k.first + k.count);
  product<N>(k.count, dim, k.keys, q.columns, kBlockRows, [&](int64_t j, int n, F32 score) {
    const F32 weight = exp_nonpositive(score - load(q.lse + n * kLanes));
    store(weights + j * kBlockRows + n * kLanes,
          all ? weight : select(block.sees(k.first + j, n), weight, F32{}));
  });
  product<N>(k.count, dim, k.values, q.grad_columns, kBlockRows, Known{q.deltas},
             [&](int64_t j, int n, F32 grad) {
               const int64_t at = j * kBlockRows + n * kLanes;
               const F32 slope = load(weights + at) * (grad + load(q.grad_lse + n * kLanes));
               store(slopes + at, all ? slope : select(block.sees(k.first + j, n), slope, F32{}));
             });
  const auto add_to = [](float* to, F32 value) { store(to, load(to) + value); };
  wide_product(k.count, block.count, ByRow{weights, kBlockRows}, q.grad_rows, width, vectors,
               [&](int64_t j, int64_t n, F32 value) {
                 add_to(k.grad_values + j * width + n * kLanes, value);
               });
  wide_product(k.count, block.count, ByRow{slopes, kBlockRows}, q.rows, width, vectors,
               [&](int64_t j, int64_t n, F32 value) {
                 add_to(k.grad_keys + j * width + n * kLanes, value);
               });
  product<N>(dim, k.count, ByColumn{k.keys.data, k.keys.stride}, slopes, kBlockRows,
             [&](int64_t d, int n, F32 value) {
               add_to(grad_queries + d * kBlockRows + n * kLanes, value);
             });
}

// Where the gradient of a KV head's rows begins in a part; blocks [width, kBlockRows] follow.
int64_t part_offset(const AttentionProblem& p, const AttentionSequence& s, int64_t head) {
  const int64_t dim = (p.dim + kDimUnit - 1) / kDimUnit * kDimUnit;
  return first_row(p, s, head) * dim;
}

// All queries pass by the keys [first, first + count), at most kTileKeys.
template <typename T>
void tile(const AttentionBackwardArgs& a, const AttentionKeyItem& item, int64_t first,
          int64_t count) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& s = p.sequences[item.sequence];
  const int64_t width = padded(p.dim), block_size = width * kBlockRows;
  const int64_t scores = kPanelKeys * kBlockRows;
  float* grad_keys = scratch<float>(0, 4 * kTileKeys * width + 4 * block_size + 2 * scores);
  float* grad_values = grad_keys + kTileKeys * width;
  float* key_buffer = grad_values + kTileKeys * width;
  float* value_buffer = key_buffer + kTileKeys * width;
  float* weights = value_buffer + kTileKeys * width;
  float* slopes = weights + scores;
  Queries q;
  q.rows = slopes + scores;
  q.columns = q.rows + block_size;
  q.grad_rows = q.columns + block_size;
  q.grad_columns = q.grad_rows + block_size;

  __builtin_memset(grad_keys, 0, 2 * kTileKeys * width * sizeof(float));
  const int64_t end = first + count < s.band.keys ? first + count : s.band.keys;
  const int64_t rows = first < end ? s.band.queries * p.group : 0;
  using Source = KeysAndValues<T, float>;
  const Source source{p, s, item.kv_head};
  typename Source::Rows keys{}, values{};
  if (rows > 0) {
    keys = source.keys(first, end - first, key_buffer);
    values = source.values(first, end - first, value_buffer);
  }
  float* part = a.parts + item.part * a.part_size + part_offset(p, s, item.kv_head);

  for (int64_t row = 0; row < rows; row += kBlockRows, part += block_size) {
    q.block.set(p, s, item.kv_head, row, rows);
    if (!q.block.meets(first, end)) continue;
    load_block<T>(a, q);
    for (int64_t key = first; key < end; key += kPanelKeys) {
      const int64_t n = end - key < kPanelKeys ? end - key : kPanelKeys;
      if (!q.block.meets(key, key + n)) continue;
      const int64_t at = key - first;
      const Keys panel{{keys.data + at * keys.stride, keys.stride},
                       {values.data + at * values.stride, values.stride},
                       grad_keys + at * width,
                       grad_values + at * width,
                       key,
                       n};
      switch (q.block.vectors()) {
        case 1:
          meet<1>(q, panel, p.dim, weights, slopes, part);
          break;
        case 2:
          meet<2>(q, panel, p.dim, weights, slopes, part);
          break;
        default:
          meet<3>(q, panel, p.dim, weights, slopes, part);
      }
    }
  }

  Turn turn;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t token = s.first_key + first + j;
    float* grad_key = grad_keys + j * width;
    if (p.inv_freq != nullptr) {
      turn.back(token, p.times_k, p);
      rotate_row(grad_key, turn.cos, turn.sin, p.half, p.interleaved, grad_key);
    }
    const int64_t to = (token * p.kv_heads + item.kv_head) * p.dim;
    store_row(static_cast<T*>(a.grad_k) + to, grad_key, p.dim);
    store_row(static_cast<T*>(a.grad_v) + to, grad_values + j * width, p.dim);
  }
}

template <typename T>
void key_gradients(const AttentionBackwardArgs& a, const AttentionKeyItem& item) {
  const AttentionSequence& s = a.problem.sequences[item.sequence];
  const int64_t rows =
      (s.band.queries * a.problem.group + kBlockRows - 1) / kBlockRows * kBlockRows;
  __builtin_memset(a.parts + item.part * a.part_size + part_offset(a.problem, s, item.kv_head), 0,
                   rows * padded(a.problem.dim) * sizeof(float));
  for (int64_t first = item.first; first < item.end; first += kTileKeys) {
    tile<T>(a, item, first, item.end - first < kTileKeys ? item.end - first : kTileKeys);
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

template <typename T>
void run(const AttentionBackwardArgs& a) {
  parallel_for(a.query_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const AttentionItem& item = a.query_items[i];
      if (a.grad_out_is_float) {
        a.out_is_float ? deltas<float, float>(a, item) : deltas<float, T>(a, item);
      } else {
        a.out_is_float ? deltas<T, float>(a, item) : deltas<T, T>(a, item);
      }
    }
  });
  turn_keys<T, float>(a.problem);
  parallel_for(a.key_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) key_gradients<T>(a, a.key_items[i]);
  });
  parallel_for(a.query_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) query_gradients<T>(a, a.query_items[i]);
  });
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& args) {
  args.problem.dtype == DType::f32 ? run<float>(args) : run<bf16>(args);
}

AFNEXT_REGISTER(attention_backward, AttentionBackwardArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
