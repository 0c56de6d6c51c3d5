// How a panel of keys meets a block of queries on the way back, in float32 or in pairs of bf16.
#pragma once

#include "cpu/attention_backward.h"
#include "cpu/attention_block.h"
#include "cpu/scratch.h"
#include "cpu/simd/pairs.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kPanelKeys = 64;

// A block of queries and its rows' shares in the softmax.
struct Queries {
  Block block;
  const float* deltas;
  alignas(64) float lse[kBlockRows], grad_lse[kBlockRows];
};

// Keys [first, first + count) of a sequence, row `at` and after of their tile.
struct Panel {
  int64_t first, at, count;
};

// Sums of gradients: of a tile's keys and values [kTileKeys, padded(dim)], of a block's queries as
// columns [padded(dim), kBlockRows].
struct Sums {
  float *keys, *values, *queries;
};

AFNEXT_INLINE void add_to(float* sum, F32 value) { store(sum, load(sum) + value); }

// delta = sum over D of grad_out * out: what the softmax takes off a row's slopes. Where one key
// has nearly all the weight the difference all but cancels; torch keeps the weights and gets it
// right. Taken off a step of D at a time, in the order of the product that it is taken off from, it
// cancels as well here, exactly so for a single key. A is how that product reads its values.
template <typename A, int64_t kStep>
void sum_steps(int64_t depth, const float* outs, const float* grads, float* deltas) {
  for (int64_t first = 0; first < depth; first += kStep, deltas += kBlockRows) {
    const int64_t end = depth - first < kStep ? depth : first + kStep;
    for (int64_t n = 0; n < kBlockRows; n += kLanes) {
      F32 sum{};
      for (int64_t at = first * kBlockRows + n; at < end * kBlockRows; at += kBlockRows)
        sum = A::add(load(outs + at), load(grads + at), sum);
      store(deltas + n, sum);
    }
  }
}

// Everything in float32. Queries come scaled.
template <typename T>
class InFloats {
 public:
  using Key = float;
  static constexpr float kLogUnit = 1.0f;  // what exponents count in, as a natural logarithm
  static float key_scale(const AttentionProblem&) { return 1.0f; }

  explicit InFloats(const AttentionBackwardArgs& args)
      : a_(args), width_(padded(args.problem.dim)) {
    const int64_t block = width_ * kBlockRows, scores = kPanelKeys * kBlockRows;
    rows_ = scratch<float>(0, 4 * block + 2 * scores + 2 * kTileKeys * width_);
    columns_ = rows_ + block;
    grad_rows_ = columns_ + block;
    grad_columns_ = grad_rows_ + block;
    weights_ = grad_columns_ + block;
    slopes_ = weights_ + scores;
    buffer_ = slopes_ + scores;
  }

  void deltas(const Block& block, float* to) {
    read_grads(block);
    load_either(block, a_.out, a_.out_is_float, rows_);
    to_columns(rows_, width_, block.vectors(), columns_);
    sum_steps<ByRow, kDeltaStep>(a_.problem.dim, columns_, grad_columns_, to);
  }

  void read_keys(const KeysAndValues<T, float>& source, int64_t first, int64_t count) {
    const auto k = source.keys(first, count, buffer_);
    const auto v = source.values(first, count, buffer_ + kTileKeys * width_);
    keys_ = {k.data, k.stride}, values_ = {v.data, v.stride};
  }
  void read_queries(const Block& block) {
    load_queries<T>(block, rows_, columns_);
    read_grads(block);
  }

  template <int N>
  void meet(const Queries& q, const Panel& k, const Sums& sums) const {
    const Block& block = q.block;
    const int64_t dim = a_.problem.dim, vectors = width_ / kLanes;
    const bool all = block.sees_all(k.first, k.first + k.count);
    const ByRow keys{keys_.data + k.at * keys_.stride, keys_.stride};
    const ByRow values{values_.data + k.at * values_.stride, values_.stride};
    product<N>(k.count, dim, keys, columns_, kBlockRows, [&](int64_t j, int n, F32 score) {
      const F32 weight = exp_nonpositive(score - load(q.lse + n * kLanes));
      store(weights_ + j * kBlockRows + n * kLanes,
            all ? weight : select(block.sees(k.first + j, n), weight, F32{}));
    });
    product<N>(k.count, dim, values, grad_columns_, kBlockRows, Known<kDeltaStep>{q.deltas},
               [&](int64_t j, int n, F32 grad) {
                 const int64_t at = j * kBlockRows + n * kLanes;
                 const F32 slope = load(weights_ + at) * (grad + load(q.grad_lse + n * kLanes));
                 store(slopes_ + at,
                       all ? slope : select(block.sees(k.first + j, n), slope, F32{}));
               });
    wide_product(k.count, block.count, ByRow{weights_, kBlockRows}, grad_rows_, width_, vectors,
                 [&](int64_t j, int64_t n, F32 value) {
                   add_to(sums.values + (k.at + j) * width_ + n * kLanes, value);
                 });
    wide_product(k.count, block.count, ByRow{slopes_, kBlockRows}, rows_, width_, vectors,
                 [&](int64_t j, int64_t n, F32 value) {
                   add_to(sums.keys + (k.at + j) * width_ + n * kLanes, value);
                 });
    product<N>(dim, k.count, ByColumn{keys.data, keys.stride}, slopes_, kBlockRows,
               [&](int64_t d, int n, F32 value) {
                 add_to(sums.queries + d * kBlockRows + n * kLanes, value);
               });
  }

 private:
  static void load_either(const Block& block, const Heads& x, bool is_float, float* rows) {
    is_float ? load_rows<float>(block, x, rows) : load_rows<T>(block, x, rows);
  }
  void read_grads(const Block& block) {
    load_either(block, a_.grad_out, a_.grad_out_is_float, grad_rows_);
    to_columns(grad_rows_, width_, block.vectors(), grad_columns_);
  }

  const AttentionBackwardArgs& a_;
  const int64_t width_;
  ByRow keys_{}, values_{};
  // Of a block: [kBlockRows, width], [width, kBlockRows]; of a panel by a block: [kPanelKeys,
  // kBlockRows].
  float *rows_, *columns_, *grad_rows_, *grad_columns_, *weights_, *slopes_, *buffer_;
};

// Whatever is multiplied is in bf16: queries, keys and values, their gradients, weights and slopes.
// Sums and the softmax are float32. Pairs are of channels in the products over channels, of queries
// in the gradients of keys and values, of keys in those of queries. The scale waits for the ends.
class InPairs {
 public:
  using Key = bf16;
  static constexpr float kLogUnit = 0.693147181f;
  static float key_scale(const AttentionProblem& p) { return p.scale; }

  explicit InPairs(const AttentionBackwardArgs& args)
      : a_(args), pairs_(padded(args.problem.even() / 2)), stride_(padded(args.problem.dim) + 16) {
    const int64_t columns = pairs_ * kBlockRows, zipped = kBlockRows / 2 * stride_;
    const int64_t scores = kPanelKeys * kBlockRows, keys = kTileKeys / 2 * args.problem.even();
    const int64_t turned = padded(args.problem.dim) * kBlockRows;
    float* memory = scratch<float>(
        0, 3 * columns + 2 * zipped + 4 * scores + 2 * keys + turned + kTileKeys / 2 * stride_);
    const auto take = [&memory](int64_t count) { return memory += count, memory - count; };
    columns_ = take(columns), grad_columns_ = take(columns);
    pairs_of_queries_ = take(zipped), pairs_of_grads_ = take(zipped);
    scores_ = take(scores), slopes_ = take(scores);
    weight_rows_ = reinterpret_cast<bf16*>(take(scores / 2));
    slope_rows_ = reinterpret_cast<bf16*>(take(scores / 2));
    slope_pairs_ = take(scores / 2);
    pairs_of_keys_ = take(kTileKeys / 2 * stride_);
    buffer_ = reinterpret_cast<bf16*>(take(2 * keys));
    rows_ = reinterpret_cast<bf16*>(take(columns));
    turned_ = take(turned);
  }

  void deltas(const Block& block, float* to) {
    read_rows(block, a_.grad_out);
    to_columns(as_pairs(rows_), pairs_, block.vectors(), grad_columns_);
    read_rows(block, a_.out);
    to_columns(as_pairs(rows_), pairs_, block.vectors(), columns_);
    sum_steps<PairsByRow, kDeltaStep / 2>(a_.problem.even() / 2, columns_, grad_columns_, to);
  }

  void read_keys(const KeysAndValues<bf16, bf16>& source, int64_t first, int64_t count) {
    const AttentionProblem& p = a_.problem;
    bf16* values = buffer_ + kTileKeys * p.even();
    if (p.dim % 2 != 0) __builtin_memset(buffer_, 0, 2 * kTileKeys * p.even() * sizeof(bf16));
    const auto k = source.keys(first, count, buffer_);
    const auto v = source.values(first, count, values);
    keys_ = {k.data, k.stride}, values_ = {v.data, v.stride};
    for (int64_t j = 0; j < count; j += 2) {
      const bf16* key = k.data + j * k.stride;
      zip_rows(key, j + 1 < count ? key + k.stride : nullptr, p.dim,
               pairs_of_keys_ + j / 2 * stride_);
    }
  }
  void read_queries(const Block& block) {
    if (a_.problem.inv_freq != nullptr) {
      read_turned(block);
    } else {
      read_rows(block, a_.problem.q);
    }
    arrange(block, columns_, pairs_of_queries_);
    read_rows(block, a_.grad_out);
    arrange(block, grad_columns_, pairs_of_grads_);
  }

  template <int N>
  void meet(const Queries& q, const Panel& k, const Sums& sums) const {
    const int64_t dim = a_.problem.dim, pairs = a_.problem.even() / 2, width = padded(dim);
    const int64_t vectors = width / kLanes, row_pairs = (q.block.count + 1) / 2;
    product<N>(k.count, pairs, PairsByRow{keys_.data + k.at * keys_.stride, keys_.stride}, columns_,
               kBlockRows, [&](int64_t j, int n, F32 score) {
                 store(scores_ + j * kBlockRows + n * kLanes, score);
               });
    product<N>(
        k.count, pairs, PairsByRow{values_.data + k.at * values_.stride, values_.stride},
        grad_columns_, kBlockRows, Known<kDeltaStep / 2>{q.deltas},
        [&](int64_t j, int n, F32 slope) { store(slopes_ + j * kBlockRows + n * kLanes, slope); });
    weigh<N>(q, k);
    wide_product(k.count, row_pairs, PairsByRow{weight_rows_, kBlockRows}, pairs_of_grads_, stride_,
                 vectors, [&](int64_t j, int64_t n, F32 value) {
                   add_to(sums.values + (k.at + j) * width + n * kLanes, value);
                 });
    wide_product(k.count, row_pairs, PairsByRow{slope_rows_, kBlockRows}, pairs_of_queries_,
                 stride_, vectors, [&](int64_t j, int64_t n, F32 value) {
                   add_to(sums.keys + (k.at + j) * width + n * kLanes, value);
                 });
    product<N>(dim, (k.count + 1) / 2, PairsByColumn{pairs_of_keys_ + k.at / 2 * stride_, stride_},
               slope_pairs_, kBlockRows, [&](int64_t d, int n, F32 value) {
                 add_to(sums.queries + d * kBlockRows + n * kLanes, value);
               });
  }

 private:
  static float* as_pairs(bf16* rows) { return reinterpret_cast<float*>(rows); }

  // Scores and slopes without weights become weights and slopes.
  template <int N>
  void weigh(const Queries& q, const Panel& k) const {
    const bool all = q.block.sees_all(k.first, k.first + k.count);
    const F32 scale = broadcast(a_.problem.scale / kLogUnit);
    for (int n = 0; n < N; ++n) {
      const F32 lse = load(q.lse + n * kLanes), grad_lse = load(q.grad_lse + n * kLanes);
      for (int64_t j = 0; j < k.count; j += 2) {
        F32 weight[2] = {}, slope[2] = {};
        for (int i = 0; i < 2 && j + i < k.count; ++i) {
          const int64_t at = (j + i) * kBlockRows + n * kLanes;
          weight[i] = exp2_coarse(load(scores_ + at) * scale - lse);
          slope[i] = weight[i] * (load(slopes_ + at) + grad_lse);
          if (all) continue;
          const I32 sees = q.block.sees(k.first + j + i, n);
          weight[i] = select(sees, weight[i], F32{}), slope[i] = select(sees, slope[i], F32{});
        }
        const int64_t low = j * kBlockRows + n * kLanes, high = low + kBlockRows;
        store_halves(round_halves(weight[0], weight[1]), weight_rows_ + low, weight_rows_ + high);
        const Words slopes = round_halves(slope[0], slope[1]);
        store_halves(slopes, slope_rows_ + low, slope_rows_ + high);
        store(slope_pairs_ + j / 2 * kBlockRows + n * kLanes, zip_halves(slopes));
      }
    }
  }

  // Rows of a block as bf16 [kBlockRows, 2 * pairs], zeros past them.
  void read_rows(const Block& block, const Heads& x) {
    const int64_t dim = a_.problem.dim, width = 2 * pairs_;
    for (int64_t i = 0; i < block.count; ++i) {
      bf16* row = rows_ + i * width;
      const bf16* from =
          static_cast<const bf16*>(x.data) + block.token(i) * x.token + block.head(i) * x.head;
      __builtin_memcpy(row, from, dim * sizeof(bf16));
      __builtin_memset(row + dim, 0, (width - dim) * sizeof(bf16));
    }
    clear_rows_from(block.count);
  }
  void read_turned(const Block& block) {
    const int64_t from = padded(a_.problem.dim), to = 2 * pairs_;
    load_turned<bf16>(block, turned_);
    for (int64_t i = 0; i < block.count; ++i) {
      for (int64_t d = 0; d < to; d += 2 * kLanes) {
        const float* x = turned_ + i * from + d;
        const Words both = round_halves(load(x), d + kLanes < from ? load(x + kLanes) : F32{});
        std::memcpy(rows_ + i * to + d, &both, sizeof(both));
      }
    }
    clear_rows_from(block.count);
  }
  void clear_rows_from(int64_t first) {
    __builtin_memset(rows_ + first * 2 * pairs_, 0, (kBlockRows - first) * pairs_ * sizeof(float));
  }
  // Those rows as columns of pairs of channels, and as rows of pairs of queries.
  void arrange(const Block& block, float* columns, float* zipped) {
    to_columns(as_pairs(rows_), pairs_, block.vectors(), columns);
    for (int64_t i = 0; i < kBlockRows; i += 2) {
      const bf16* row = rows_ + i * 2 * pairs_;
      zip_rows(row, row + 2 * pairs_, padded(a_.problem.dim), zipped + i / 2 * stride_);
    }
  }

  const AttentionBackwardArgs& a_;
  // Pairs of a row's channels; rows of pairs of rows are so far apart that those of a panel do not
  // crowd each other out of the cache.
  const int64_t pairs_, stride_;
  PairsByRow keys_{}, values_{};
  float *columns_, *grad_columns_;             // [pairs, kBlockRows]
  float *pairs_of_queries_, *pairs_of_grads_;  // [kBlockRows / 2, stride]
  float *scores_, *slopes_;                    // [kPanelKeys, kBlockRows]
  bf16 *weight_rows_, *slope_rows_;            // likewise
  float *slope_pairs_, *pairs_of_keys_;        // [kPanelKeys / 2, kBlockRows], [.., stride]
  bf16 *buffer_, *rows_;
  float* turned_;
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
