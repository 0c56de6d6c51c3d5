// How a panel of keys meets a block of queries on the way back, in float32 or in pairs of bf16.
#pragma once

#include "cpu/attention_backward.h"
#include "cpu/attention_block.h"
#include "cpu/scratch.h"
#include "cpu/simd/pairs.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kPanelKeys = 64;

// A block of queries: where its rows begin among all that are arranged, and their softmax.
struct Queries {
  Block block;
  int64_t row;
  float *lse, *grad_lse, *deltas;

  void set(const AttentionBackwardArgs& a, const AttentionSequence& s, int64_t head, int64_t first,
           int64_t limit) {
    block.set(a.problem, s, head, first, limit);
    row = s.first_row * a.problem.kv_heads + head * s.rows + first;
    lse = a.softmax + row * softmax_rows(a.problem.dim);
    grad_lse = lse + kBlockRows, deltas = grad_lse + kBlockRows;
  }
};

// Keys [first, first + count) of a sequence, row `at` and after of their tile.
struct Panel {
  int64_t first, at, count;

  // How many of the keys come before the last that the block sees.
  int64_t reach(const Block& block) const {
    return block.end_key - first < count ? block.end_key - first : count;
  }
};

// A thread's working memory, handed out piece by piece.
class Memory {
 public:
  explicit Memory(int64_t floats) : next_(scratch<float>(0, floats)) {}
  float* take(int64_t floats) {
    next_ += floats;
    return next_ - floats;
  }
  bf16* take_bf16(int64_t count) { return reinterpret_cast<bf16*>(take(count / 2)); }

 private:
  float* next_;
};

// Where products go: into rows, or on top of them.
struct StoreTo {
  float* rows;
  int64_t stride;
  AFNEXT_INLINE_METHOD void operator()(int64_t m, int64_t n, F32 value) const {
    store(rows + m * stride + n * kLanes, value);
  }
};
struct AddTo {
  float* rows;
  int64_t stride;
  AFNEXT_INLINE_METHOD void operator()(int64_t m, int64_t n, F32 value) const {
    float* to = rows + m * stride + n * kLanes;
    store(to, load(to) + value);
  }
};

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
  struct Session {};
  static constexpr int kBlocks = 1;        // that meet a tile together
  static constexpr float kLogUnit = 1.0f;  // what exponents count in, as a natural logarithm
  static float key_scale(const AttentionProblem&) { return 1.0f; }

  explicit InFloats(const AttentionBackwardArgs& args)
      : a_(args), width_(padded(args.problem.dim)) {
    const int64_t size = args.row_count * width_;
    rows_ = args.arranged, columns_ = rows_ + size;
    grad_rows_ = columns_ + size, grad_columns_ = grad_rows_ + size;
    Memory memory((kPanelKeys + kTileKeys) * kRows + 2 * (kTileKeys + kBlockRows) * width_);
    weights_ = memory.take(kPanelKeys * kRows), slopes_ = memory.take(kTileKeys * kRows);
    buffer_ = memory.take(2 * kTileKeys * width_);
    outs_ = memory.take(kBlockRows * width_), out_columns_ = memory.take(kBlockRows * width_);
  }

  void arrange(const Queries& q) {
    const Block& block = q.block;
    const int64_t at = q.row * width_, vectors = block.vectors();
    load_queries<T>(block, rows_ + at, columns_ + at);
    load_either(block, a_.grad_out, a_.grad_out_is_float, grad_rows_ + at);
    to_columns(grad_rows_ + at, width_, vectors, grad_columns_ + at);
    load_either(block, a_.out, a_.out_is_float, outs_);
    to_columns(outs_, width_, vectors, out_columns_);
    sum_steps<ByRow, kDeltaStep>(a_.problem.dim, out_columns_, grad_columns_ + at, q.deltas);
  }

  void read_keys(const KeysAndValues<T, float>& source, int64_t first, int64_t count) {
    const auto k = source.keys(first, count, buffer_);
    const auto v = source.values(first, count, buffer_ + kTileKeys * width_);
    keys_ = {k.data, k.stride}, values_ = {v.data, v.stride};
  }
  template <int N>
  void meet(int at, const Queries& q, const Panel& k) const {
    const int64_t dim = a_.problem.dim, reach = k.reach(q.block);
    const bool all = q.block.sees_all(k.first, k.first + reach);
    float* weights = weights_ + at * kBlockRows;
    float* slopes = slopes_ + k.at * kRows + at * kBlockRows;
    product<N>(reach, dim, row_of(keys_, k.at), columns_ + q.row * width_, kBlockRows,
               [&](int64_t j, int n, F32 score) {
                 const F32 weight = exp_nonpositive(score - load(q.lse + n * kLanes));
                 store(weights + j * kRows + n * kLanes,
                       all ? weight : select(q.block.sees(k.first + j, n), weight, F32{}));
               });
    product<N>(reach, dim, row_of(values_, k.at), grad_columns_ + q.row * width_, kBlockRows,
               Known<kDeltaStep>{q.deltas}, [&](int64_t j, int n, F32 grad) {
                 const int64_t to = j * kRows + n * kLanes;
                 const F32 slope = load(weights + to) * (grad + load(q.grad_lse + n * kLanes));
                 store(slopes + to,
                       all ? slope : select(q.block.sees(k.first + j, n), slope, F32{}));
               });
    for (int64_t to = reach * kRows; to < k.count * kRows; to += kRows) {
      __builtin_memset(weights + to, 0, N * kLanes * sizeof(float));
      __builtin_memset(slopes + to, 0, N * kLanes * sizeof(float));
    }
  }

  // The rows [first, end) of a group of blocks add to the gradients of the keys that they have met.
  void add_to_keys(const Queries& group, const Panel& k, int64_t first, int64_t end, float* keys,
                   float* values) const {
    const int64_t row = (group.row + first) * width_;
    wide_product(k.count, end - first, ByRow{weights_ + first, kRows}, grad_rows_ + row, width_,
                 width_ / kLanes, AddTo{values + k.at * width_, width_});
    wide_product(k.count, end - first, ByRow{slopes_ + k.at * kRows + first, kRows}, rows_ + row,
                 width_, width_ / kLanes, AddTo{keys + k.at * width_, width_});
  }

  // And the keys [first, end) of the tile, which is whole panels where it matters, to theirs.
  template <int N>
  void add_to_queries(int at, int64_t first, int64_t end, float* sums) const {
    const ByRow keys = row_of(keys_, first);
    product<N>(a_.problem.dim, end - first, ByColumn{keys.data, keys.stride},
               slopes_ + first * kRows + at * kBlockRows, kRows, AddTo{sums, kBlockRows});
  }

 private:
  static constexpr int64_t kRows = kBlocks * kBlockRows;

  static ByRow row_of(ByRow x, int64_t row) { return {x.data + row * x.stride, x.stride}; }
  static void load_either(const Block& block, const Heads& x, bool is_float, float* rows) {
    is_float ? load_rows<float>(block, x, rows) : load_rows<T>(block, x, rows);
  }
  const AttentionBackwardArgs& a_;
  const int64_t width_;
  ByRow keys_{}, values_{};
  float *rows_, *grad_rows_;        // of all blocks: [kBlockRows, width] each ..
  float *columns_, *grad_columns_;  // .. and [width, kBlockRows]
  float *weights_, *slopes_;        // [kPanelKeys, kRows], [kTileKeys, kRows]
  float *buffer_, *outs_, *out_columns_;
};

// Whatever is multiplied is in bf16: queries, keys and values, their gradients, weights and slopes.
// Sums and the softmax are float32. Pairs are of channels in the products over channels, of queries
// in the gradients of keys and values, of keys in those of queries. The scale waits for the ends.
class InPairs {
 public:
  using Key = bf16;
  struct Session {};
  static constexpr int kBlocks = 4;
  static constexpr float kLogUnit = 0.693147181f;
  static float key_scale(const AttentionProblem& p) { return p.scale; }

  explicit InPairs(const AttentionBackwardArgs& args)
      : a_(args),
        width_(padded(args.problem.dim)),
        pairs_(padded(args.problem.even() / 2)),
        stride_(width_ + 16) {
    const int64_t size = args.row_count * pairs_, zipped_size = args.row_count / 2 * stride_;
    columns_ = args.arranged, grad_columns_ = columns_ + size;
    zipped_ = grad_columns_ + size, zipped_grads_ = zipped_ + zipped_size;
    const int64_t keys = kTileKeys / 2 * args.problem.even(), scores = kPanelKeys * kBlockRows;
    const int64_t columns = pairs_ * kBlockRows, turned = width_ * kBlockRows;
    Memory memory(2 * scores + kPanelKeys * kRows + kTileKeys / 2 * (kRows + stride_) + 2 * keys +
                  2 * columns + turned);
    scores_ = memory.take(scores), raw_slopes_ = memory.take(scores);
    weights_ = memory.take_bf16(kPanelKeys * kRows), slopes_ = memory.take_bf16(kPanelKeys * kRows);
    zipped_slopes_ = memory.take(kTileKeys / 2 * kRows);
    zipped_keys_ = memory.take(kTileKeys / 2 * stride_);
    buffer_ = memory.take_bf16(4 * keys);
    rows_ = memory.take_bf16(2 * columns), out_columns_ = memory.take(columns);
    turned_ = memory.take(turned);
  }

  void arrange(const Queries& q) {
    arrange_inputs(q);
    to_columns(as_pairs(rows_), pairs_, q.block.vectors(), out_columns_);
    sum_steps<PairsByRow, kDeltaStep / 2>(a_.problem.even() / 2, out_columns_,
                                          grad_columns_ + q.row * pairs_, q.deltas);
  }

  void read_keys(const KeysAndValues<bf16, bf16>& source, int64_t first, int64_t count) {
    const AttentionProblem& p = a_.problem;
    if (p.dim % 2 != 0) __builtin_memset(buffer_, 0, 2 * kTileKeys * p.even() * sizeof(bf16));
    const auto k = source.keys(first, count, buffer_);
    const auto v = source.values(first, count, buffer_ + kTileKeys * p.even());
    keys_ = {k.data, k.stride}, values_ = {v.data, v.stride};
    for (int64_t j = 0; j < count; j += 2) {
      const bf16* key = k.data + j * k.stride;
      zip_rows(key, j + 1 < count ? key + k.stride : nullptr, p.dim,
               zipped_keys_ + j / 2 * stride_);
    }
  }
  template <int N>
  void meet(int at, const Queries& q, const Panel& k) const {
    const int64_t pairs = a_.problem.even() / 2, reach = k.reach(q.block);
    const int64_t column = q.row * pairs_;
    product<N>(reach, pairs, row_of(keys_, k.at), columns_ + column, kBlockRows,
               StoreTo{scores_, kBlockRows});
    product<N>(reach, pairs, row_of(values_, k.at), grad_columns_ + column, kBlockRows,
               Known<kDeltaStep / 2>{q.deltas}, StoreTo{raw_slopes_, kBlockRows});
    weigh<N>(at, q, k, reach);
  }

  void add_to_keys(const Queries& group, const Panel& k, int64_t first, int64_t end, float* keys,
                   float* values) const {
    const int64_t depth = (end - first + 1) / 2, row = (group.row + first) / 2 * stride_;
    wide_product(k.count, depth, PairsByRow{weights_ + first, kRows}, zipped_grads_ + row, stride_,
                 width_ / kLanes, AddTo{values + k.at * width_, width_});
    wide_product(k.count, depth, PairsByRow{slopes_ + first, kRows}, zipped_ + row, stride_,
                 width_ / kLanes, AddTo{keys + k.at * width_, width_});
  }

  template <int N>
  void add_to_queries(int at, int64_t first, int64_t end, float* sums) const {
    product<N>(a_.problem.dim, (end - first + 1) / 2,
               PairsByColumn{zipped_keys_ + first / 2 * stride_, stride_},
               zipped_slopes_ + (at * kTileKeys + first) / 2 * kBlockRows, kBlockRows,
               AddTo{sums, kBlockRows});
  }

 protected:
  static constexpr int64_t kRows = kBlocks * kBlockRows;

  // Queries and their gradients as the products take them; leaves out in rows_.
  void arrange_inputs(const Queries& q) {
    a_.problem.inv_freq != nullptr ? read_turned(q.block) : read_rows(q.block, a_.problem.q);
    arrange_rows(q, columns_, zipped_);
    read_rows(q.block, a_.grad_out);
    arrange_rows(q, grad_columns_, zipped_grads_);
    read_rows(q.block, a_.out);
  }

  // Scores and slopes that lack the weights become weights and slopes, zero past `reach`.
  template <int N>
  void weigh(int block, const Queries& q, const Panel& k, int64_t reach) const {
    const bool all = q.block.sees_all(k.first, k.first + reach);
    const F32 scale = broadcast(a_.problem.scale / kLogUnit);
    float* zipped = zipped_slopes_ + (block * kTileKeys + k.at) / 2 * kBlockRows;
    for (int n = 0; n < N; ++n) {
      const F32 lse = load(q.lse + n * kLanes), grad_lse = load(q.grad_lse + n * kLanes);
      for (int64_t j = 0; j < k.count; j += 2) {
        F32 weight[2] = {}, slope[2] = {};
        for (int i = 0; i < 2 && j + i < reach; ++i) {
          const int64_t at = (j + i) * kBlockRows + n * kLanes;
          weight[i] = exp2_coarse(load(scores_ + at) * scale - lse);
          slope[i] = weight[i] * (load(raw_slopes_ + at) + grad_lse);
          if (all) continue;
          const I32 sees = q.block.sees(k.first + j + i, n);
          weight[i] = select(sees, weight[i], F32{}), slope[i] = select(sees, slope[i], F32{});
        }
        const int64_t low = j * kRows + block * kBlockRows + n * kLanes, high = low + kRows;
        store_halves(round_halves(weight[0], weight[1]), weights_ + low, weights_ + high);
        const Words slopes = round_halves(slope[0], slope[1]);
        store_halves(slopes, slopes_ + low, slopes_ + high);
        store(zipped + j / 2 * kBlockRows + n * kLanes, zip_halves(slopes));
      }
    }
  }

  const AttentionBackwardArgs& a_;
  // Of a row in floats, of a row in pairs of its channels, and from one row of pairs of rows to the
  // next: so far apart that those of a panel do not crowd each other out of the cache.
  const int64_t width_, pairs_, stride_;
  float *columns_, *grad_columns_;  // of all blocks: [pairs, kBlockRows] each ..
  float *zipped_, *zipped_grads_;   // .. and [kBlockRows / 2, stride]
  float *scores_, *raw_slopes_;     // [kPanelKeys, kBlockRows]
  bf16 *weights_, *slopes_;         // [kPanelKeys, kRows]
  float* zipped_slopes_;            // [kBlocks, kTileKeys / 2, kBlockRows]
  bf16 *buffer_, *rows_;            // keys and values of a tile; [kBlockRows, 2 * pairs]

 private:
  static PairsByRow row_of(PairsByRow x, int64_t row) {
    return {x.data + row * x.stride, x.stride};
  }
  static float* as_pairs(bf16* rows) { return reinterpret_cast<float*>(rows); }

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
    load_turned<bf16>(block, turned_);
    for (int64_t i = 0; i < block.count; ++i) {
      for (int64_t d = 0; d < 2 * pairs_; d += 2 * kLanes) {
        const float* x = turned_ + i * width_ + d;
        const F32 low = d < width_ ? load(x) : F32{};
        const F32 high = d + kLanes < width_ ? load(x + kLanes) : F32{};
        const Words both = round_halves(low, high);
        __builtin_memcpy(rows_ + i * 2 * pairs_ + d, &both, sizeof(both));
      }
    }
    clear_rows_from(block.count);
  }
  void clear_rows_from(int64_t first) {
    __builtin_memset(rows_ + first * 2 * pairs_, 0, (kBlockRows - first) * pairs_ * sizeof(float));
  }
  // Those rows as columns of pairs of channels, and as rows of pairs of queries.
  void arrange_rows(const Queries& q, float* columns, float* zipped) {
    to_columns(as_pairs(rows_), pairs_, q.block.vectors(), columns + q.row * pairs_);
    zipped += q.row / 2 * stride_;
    for (int64_t i = 0; i < kBlockRows; i += 2, zipped += stride_) {
      const bf16* row = rows_ + i * 2 * pairs_;
      zip_rows(row, row + 2 * pairs_, width_, zipped);
    }
  }

  PairsByRow keys_{}, values_{};
  float* zipped_keys_;  // [kTileKeys / 2, stride]
  float *out_columns_, *turned_;
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
