// How a panel of keys meets a block of queries, in float32 or in pairs of bf16.
#pragma once

#include "cpu/attention_block.h"
#include "cpu/simd/pairs.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// What a block of queries carries from panel to panel.
struct Running {
  float *queries, *out;  // columns, kBlockRows apart; out before its division by the sum
  alignas(64) float peak[kBlockRows], total[kBlockRows];
};

// Scores that rows do not see become -inf.
template <int N>
AFNEXT_INLINE void hide(const Block& block, int64_t first, int64_t count, float* scores) {
  if (block.sees_all(first, first + count)) return;
  for (int64_t j = 0; j < count; ++j) {
    for (int n = 0; n < N; ++n) {
      float* score = scores + j * kBlockRows + n * kLanes;
      store(score, select(block.sees(first + j, n), load(score), broadcast(-__builtin_inff())));
    }
  }
}

// The peak of each row of the n-th vector after this panel. Where nothing was seen yet all scores
// are -inf: any finite `base` gives weights of zero.
struct Peak {
  F32 before, base;
};
AFNEXT_INLINE Peak raise(const float* scores, int64_t keys, Running& s, int n) {
  const F32 before = load(s.peak + n * kLanes);
  F32 peaks[4] = {before, before, before, before};  // one would wait for itself
  const float* score = scores + n * kLanes;
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4, score += 4 * kBlockRows) {
    for (int i = 0; i < 4; ++i) peaks[i] = max(peaks[i], load(score + i * kBlockRows));
  }
  for (; j < keys; ++j, score += kBlockRows) peaks[0] = max(peaks[0], load(score));
  const F32 peak = max(max(peaks[0], peaks[1]), max(peaks[2], peaks[3]));
  store(s.peak + n * kLanes, peak);
  return {before, select(peak == -__builtin_inff(), F32{}, peak)};
}

// out = out * shrink + values.
template <int N, typename Values>
AFNEXT_INLINE void add_values(int64_t dim, int64_t depth, Values values, const float* weights,
                              const F32* shrink, float* sums) {
  product<N>(dim, depth, values, weights, kBlockRows, [&](int64_t d, int n, F32 value) {
    float* out = sums + d * kBlockRows + n * kLanes;
    store(out, fma(load(out), shrink[n], value));
  });
}

// Everything in float32.
template <typename T>
struct InFloats {
  using Key = float;
  static constexpr int64_t kPanelKeys = 64;
  struct Session {};
  static int64_t memory(const AttentionProblem& p) { return 2 * kPanelKeys * p.even(); }

  // The natural logarithm of the unit that weights at this peak are counted in.
  static float log_unit(const AttentionProblem&, float peak) { return peak; }
  static void read_queries(const Block& block, float* rows, float* columns) {
    load_queries<T>(block, rows, columns);
  }

  ByRow keys;
  ByColumn values;

  InFloats(const KeysAndValues<T, float>& source, int64_t first, int64_t count, float* memory) {
    const auto k = source.keys(first, count, memory);
    const auto v = source.values(first, count, memory + kPanelKeys * source.p.even());
    keys = {k.data, k.stride}, values = {v.data, v.stride};
  }

  template <int N>
  void meet(const Block& block, int64_t first, int64_t count, float* scores, Running& s) const {
    const int64_t dim = block.problem->dim;
    product<N>(count, dim, keys, s.queries, kBlockRows, [&](int64_t j, int n, F32 score) {
      store(scores + j * kBlockRows + n * kLanes, score);
    });
    hide<N>(block, first, count, scores);
    F32 shrink[N];
    for (int n = 0; n < N; ++n) {
      const Peak peak = raise(scores, count, s, n);
      F32 total{};
      for (int64_t at = n * kLanes; at < count * kBlockRows; at += kBlockRows) {
        const F32 weight = exp_nonpositive(load(scores + at) - peak.base);
        store(scores + at, weight);
        total += weight;
      }
      shrink[n] = exp_nonpositive(peak.before - peak.base);
      float* sum = s.total + n * kLanes;
      store(sum, fma(load(sum), shrink[n], total));
    }
    add_values<N>(dim, count, values, scores, shrink, s.out);
  }
};

// Queries, keys, weights and values in bf16, sums and the softmax in float32: what torch's own bf16
// attention rounds, this rounds too. Pairs are of channels in the scores, of keys in the output.
struct InPairs {
  using Key = bf16;
  static constexpr int64_t kPanelKeys = 64;
  struct Session {};
  // Rows of values are so far apart, in pairs, that those of a panel do not crowd each other out of
  // the cache.
  static int64_t value_stride(int64_t dim) { return padded(dim) + 16; }
  static int64_t memory(const AttentionProblem& p) {
    return kPanelKeys * p.even() + kPanelKeys / 2 * value_stride(p.dim);
  }

  // Scores come without the scale: the exponent, of 2, takes it in. Queries carry its sign; for a
  // scale of zero they are zero.
  static float scale2(const AttentionProblem& p) {
    return (p.scale == 0.0f ? 1.0f : __builtin_fabsf(p.scale)) * 1.44269504f;
  }
  static float log_unit(const AttentionProblem& p, float peak) {
    return peak * scale2(p) * 0.693147181f;
  }
  static void read_queries(const Block& block, float* rows, float* columns);

  PairsByRow keys;
  PairsByColumn values;

  InPairs(const KeysAndValues<bf16, bf16>& source, int64_t first, int64_t count, float* memory) {
    const AttentionProblem& p = source.p;
    bf16* buffer = reinterpret_cast<bf16*>(memory);
    if (p.dim % 2 != 0) __builtin_memset(buffer, 0, kPanelKeys * p.even() * sizeof(bf16));
    const auto v = source.values(first, count, buffer + kPanelKeys * p.even());
    const int64_t stride = value_stride(p.dim);
    float* pairs = memory + kPanelKeys * p.even();
    for (int64_t j = 0; j < count; j += 2)
      zip_rows(v.data + j * v.stride, j + 1 < count ? v.data + (j + 1) * v.stride : nullptr, p.dim,
               pairs + j / 2 * stride);
    const auto k = source.keys(first, count, buffer);
    keys = {k.data, k.stride}, values = {pairs, stride};
  }

  template <int N>
  void meet(const Block& block, int64_t first, int64_t count, float* scores, Running& s) const {
    const AttentionProblem& p = *block.problem;
    product<N>(count, p.even() / 2, keys, s.queries, kBlockRows, [&](int64_t j, int n, F32 score) {
      store(scores + j * kBlockRows + n * kLanes, score);
    });
    F32 shrink[N];
    weigh<N>(block, first, count, scores, s, shrink);
    add_values<N>(p.dim, (count + 1) / 2, values, scores, shrink, s.out);
  }

  // Scores of `count` keys become weights, a pair of keys in the place of the pair's half before;
  // the sums before them are to shrink.
  template <int N>
  static void weigh(const Block& block, int64_t first, int64_t count, float* scores, Running& s,
                    F32 (&shrink)[N]) {
    hide<N>(block, first, count, scores);
    const F32 scale = broadcast(scale2(*block.problem));
    for (int n = 0; n < N; ++n) {
      const Peak peak = raise(scores, count, s, n);
      const F32 base =
          in_register(peak.base * scale);  // rounded once, for all that is relative to it
      F32 total{};
      float* pairs = scores + n * kLanes;
      const float* score = pairs;
      for (int64_t j = 0; j < count; j += 2, pairs += kBlockRows, score += 2 * kBlockRows) {
        const F32 low = exp2_coarse(load(score) * scale - base);
        const F32 high =
            j + 1 < count ? exp2_coarse(load(score + kBlockRows) * scale - base) : F32{};
        total += low + high;
        store(pairs, round_pairs(low, high));
      }
      shrink[n] = exp2_coarse(in_register(peak.before * scale) - base);
      float* sum = s.total + n * kLanes;
      store(sum, fma(load(sum), shrink[n], total));
    }
  }
};

inline void InPairs::read_queries(const Block& block, float* rows, float* columns) {
  const AttentionProblem& p = *block.problem;
  const int64_t width = padded(p.dim), pairs = padded(p.even() / 2);
  load_turned<bf16>(block, rows);
  const float sign = p.scale > 0 ? 1.0f : p.scale < 0 ? -1.0f : 0.0f;
  for (int64_t i = 0; i < kBlockRows; ++i) {
    float* row = rows + i * width;
    alignas(64) float pair[kMaxDim / 2];
    int64_t d = 0;
    for (; 2 * d + 2 * kLanes <= width; d += kLanes) {
      const F32 low = load(row + 2 * d) * sign;
      const F32 high = load(row + 2 * d + kLanes) * sign;
      store(pair + d, round_pairs(evens(low, high), odds(low, high)));
    }
    if (2 * d < width) {
      const F32 low = load(row + 2 * d) * sign;
      store(pair + d, round_pairs(evens(low, F32{}), odds(low, F32{})));
    }
    __builtin_memcpy(rows + i * pairs, pair, pairs * sizeof(float));
  }
  to_columns(rows, pairs, block.vectors(), columns);
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
