// How the rows of a group meet a chunk of keys.
//
// Keys lie along the lanes for the scores: 32-bit words of as many keys as there are lanes, a
// channel or several each, are transposed in registers, once for all rows, and each word of a query
// is broadcast to them. Nothing is summed across lanes, and the softmax has whole vectors. For the
// output channels lie along the lanes, as they do in memory, and weights are broadcast.
#pragma once

#include "cpu/band.h"
#include "cpu/simd/pairs.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/zip.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kGroupRows = kLanes == 16 ? 8 : 4;  // rows whose sums stay in registers
constexpr int64_t kChunkKeys = 128;
constexpr int64_t kMaxDim = 256;

// Rows on their way through the keys.
struct Group {
  float* queries;  // word by word, the rows' side by side; what a word is, the arithmetic knows
  float* out;      // [vectors of channels, kGroupRows, kLanes], before its division by the total
  int64_t row;
  int rows;
  float unit[kGroupRows];      // a score is the sum of products times this
  int32_t offset[kGroupRows];  // .. after this is taken off, where sums are integers
  alignas(64) float peak[kLanes], total[kLanes];

  AFNEXT_INLINE_METHOD float* out_at(int64_t vector, int h) const {
    return out + (vector * kGroupRows + h) * kLanes;
  }
};

// The keys and values of a chunk, an address each: pages of any size read alike. Past `count`
// the last ones repeat; up to `readable` they are read.
struct Chunk {
  int64_t first, count = 0, readable = 0;
  const void *keys[kChunkKeys], *values[kChunkKeys];
  alignas(64) float key_scales[kChunkKeys], value_scales[kChunkKeys];  // of int8
  float* quads;  // values side by side, where the arithmetic takes them so ..
  bool zipped;   // .. once they are there
};

// Fetches what comes next while there is work on what is here: rows, a line at a time, in the order
// of memory, which a core's own prefetching then follows. Into L2: a core waits for too few lines
// of L1 at a time to hide the latency of memory.
struct Fetch {
  const void *const *row, *const *end;
  int64_t bytes;  // of a row
  int64_t at = 0;

  AFNEXT_INLINE_METHOD void next(int lines) {
    for (int i = 0; i < lines && row != end; ++i) {
      __builtin_prefetch(static_cast<const char*>(*row) + at, 0, 2);
      at += 64;
      if (at >= bytes) at = 0, ++row;
    }
  }
};

// The softmax of a dtype: e**(score - peak) with scores counted in units of kUnit.
template <typename T>
struct Exponential {
  static constexpr float kPerUnit = 1.0f, kUnit = 1.0f;
  AFNEXT_INLINE F32 weight(F32 x) { return exp_nonpositive(x); }
};
template <>
struct Exponential<bf16> {
  static constexpr float kPerUnit = 1.44269504f, kUnit = 0.693147181f;
  AFNEXT_INLINE F32 weight(F32 x) { return exp2_coarse(x); }
};

// Products in float32, for queries of T. A word is one channel, or two of bf16.
template <typename T, typename Element>
struct InFloats {
  using Query = T;
  using Page = Element;
  using Sum = F32;
  static constexpr int kPerWord = sizeof(Page) == 2 ? 2 : 1;
  static constexpr int kQueryWords = kPerWord;         // float32 of a query for each word of a key
  static constexpr int kChannels = kPerWord * kLanes;  // of a vector of words
  static constexpr int64_t kKeysAtOnce = kLanes;
  static constexpr bool kScaled = sizeof(Page) == 1, kInQuads = false;

  AFNEXT_INLINE F32 words(const void* row, int64_t d) {
    const Page* at = static_cast<const Page*>(row) + d;
    if constexpr (kPerWord == 2) {
      return load_raw(at);
    } else {
      return load(at);
    }
  }
  AFNEXT_INLINE Sum add(F32 words, const float* query, Sum sum) {
    if constexpr (kPerWord == 1) return fma(words, broadcast(query[0]), sum);
    const Sum low = fma(low_of_pairs(words), broadcast(query[0]), sum);
    return fma(high_of_pairs(words), broadcast(query[kGroupRows]), low);
  }
  AFNEXT_INLINE F32 score(const Group& g, int h, Sum sum) { return sum * g.unit[h]; }

  static void set_query(Group& g, int h, const float* x, int64_t width, float unit) {
    for (int64_t d = 0; d < width; ++d) g.queries[d * kGroupRows + h] = x[d];
    g.unit[h] = unit;
  }

  template <int H>
  AFNEXT_INLINE void add_values(Group& g, Chunk& chunk, Fetch& fetch, float* weights,
                                const float* shrink, int64_t width) {
    for (int64_t d = 0; d < width; d += kChannels) {
      const int64_t vector = d / kLanes;
      F32 sums[H][kPerWord];
      for (int h = 0; h < H; ++h) {
        for (int p = 0; p < kPerWord; ++p) sums[h][p] = load(g.out_at(vector + p, h)) * shrink[h];
      }
      for (int64_t j = 0; j < chunk.count; ++j) {
        fetch.next(1);
        const F32 value = words(chunk.values[j], d);
        const F32 low = in_register(kPerWord == 2 ? low_of_pairs(value) : value);
        const F32 high = high_of_pairs(value);
        for (int h = 0; h < H; ++h) {
          const F32 weight = in_register(broadcast(weights[h * kChunkKeys + j]));
          sums[h][0] = fma(weight, low, sums[h][0]);
          if constexpr (kPerWord == 2) sums[h][1] = fma(weight, high, sums[h][1]);
        }
      }
      for (int h = 0; h < H; ++h) {
        for (int p = 0; p < kPerWord; ++p) store(g.out_at(vector + p, h), sums[h][p]);
      }
    }
  }

  static void get_out(const Group& g, int h, int64_t width, float* x) {
    for (int64_t d = 0; d < width; d += kChannels) {
      const F32 low = load(g.out_at(d / kLanes, h));
      if constexpr (kPerWord == 1) {
        store(x + d, low);
      } else {
        const F32 high = load(g.out_at(d / kLanes + 1, h));
        store(x + d, zip_low(low, high));
        store(x + d + kLanes, zip_high(low, high));
      }
    }
  }
};

// Queries, keys, weights and values in pairs of bf16, sums in float32: what torch's own bf16
// attention rounds, this rounds too. Pairs are of channels in the scores; in the output they are of
// keys kLanes apart.
struct InPairs {
  using Query = bf16;
  using Page = bf16;
  using Sum = F32;
  static constexpr int kQueryWords = 1, kChannels = 2 * kLanes;
  static constexpr int64_t kKeysAtOnce = 2 * kLanes;
  static constexpr bool kScaled = false, kInQuads = false;

  AFNEXT_INLINE F32 words(const void* row, int64_t d) {
    return load_raw(static_cast<const bf16*>(row) + d);
  }
  AFNEXT_INLINE Sum add(F32 words, const float* query, Sum sum) {
    return dot_broadcast(words, query, sum);
  }
  AFNEXT_INLINE F32 score(const Group& g, int h, Sum sum) { return sum * g.unit[h]; }

  static void set_query(Group& g, int h, const float* x, int64_t width, float unit) {
    bf16 pairs[kMaxDim + 2 * kLanes];
    store_row(pairs, x, width);
    for (int64_t d = 0; d < width; d += 2)
      std::memcpy(g.queries + d / 2 * kGroupRows + h, pairs + d, 2 * sizeof(bf16));
    g.unit[h] = unit;
  }

  // Weights of two keys become a pair, in the first half of their row.
  template <int H>
  AFNEXT_INLINE void pair_keys(float* weights, int64_t readable) {
    for (int h = 0; h < H; ++h) {
      float* row = weights + h * kChunkKeys;
      for (int64_t j = 0; j < readable; j += 2 * kLanes)
        store(row + j / 2, round_pairs(load(row + j), load(row + j + kLanes)));
    }
  }

  template <int H>
  AFNEXT_INLINE void add_values(Group& g, Chunk& chunk, Fetch& fetch, float* weights,
                                const float* shrink, int64_t width) {
    pair_keys<H>(weights, chunk.readable);
    for (int64_t d = 0; d < width; d += kChannels) {
      const int64_t vector = d / kLanes;
      F32 sums[H][2];
      for (int h = 0; h < H; ++h) {
        for (int p = 0; p < 2; ++p) sums[h][p] = load(g.out_at(vector + p, h)) * shrink[h];
      }
      for (int64_t first = 0; first < chunk.count; first += 2 * kLanes) {
        const int64_t left = chunk.count - first, end = first + (left < kLanes ? left : kLanes);
        for (int64_t j = first; j < end; ++j) {
          fetch.next(2);
          const F32 a = words(chunk.values[j], d), b = words(chunk.values[j + kLanes], d);
          F32 low, high;
          zip_blocks(a, b, low, high);
          const float* weight = weights + j - first / 2;
          for (int h = 0; h < H; ++h) {
            sums[h][0] = dot_broadcast(low, weight + h * kChunkKeys, sums[h][0]);
            sums[h][1] = dot_broadcast(high, weight + h * kChunkKeys, sums[h][1]);
          }
        }
      }
      for (int h = 0; h < H; ++h) {
        for (int p = 0; p < 2; ++p) store(g.out_at(vector + p, h), sums[h][p]);
      }
    }
  }

  static void get_out(const Group& g, int h, int64_t width, float* x) {
    for (int64_t d = 0; d < width; d += kChannels) {
      for (int p = 0; p < 2; ++p) {
        const float* from = g.out_at(d / kLanes + p, h);
        for (int l = 0; l < kLanes / 4; ++l)
          std::memcpy(x + d + 8 * l + 4 * p, from + 4 * l, 4 * sizeof(float));
      }
    }
  }
};

// Sums of products of H rows with kLanes keys.
template <int H, typename In>
AFNEXT_INLINE void multiply(const Group& g, const void* const* keys, Fetch& fetch, int64_t width,
                            typename In::Sum (&sums)[H]) {
  const float* query = g.queries;
  for (int64_t d = 0; d < width; d += In::kChannels) {
    fetch.next(kLanes);
    F32 block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = In::words(keys[i], d);
    transpose(block);
    for (int i = 0; i < kLanes; ++i, query += In::kQueryWords * kGroupRows) {
      for (int h = 0; h < H; ++h) sums[h] = In::add(block[i], query + h, sums[h]);
    }
  }
}

// Keys that a row does not see get a score of -inf, and so does what is past the last one.
template <int H>
AFNEXT_INLINE void hide(const Group& g, const Band& band, int64_t group, const Chunk& chunk,
                        float* scores) {
  for (int h = 0; h < H; ++h) {
    const int64_t query = (g.row + h) / group;
    const int64_t first = band.first(query) - chunk.first, end = band.end(query) - chunk.first;
    float* row = scores + h * kChunkKeys;
    for (int64_t j = 0; j < first && j < chunk.count; ++j) row[j] = -__builtin_inff();
    for (int64_t j = end < 0 ? 0 : end; j < chunk.readable; ++j) row[j] = -__builtin_inff();
  }
}

// Scores become weights relative to the new peak of their row; `shrink` brings what was summed
// before to that peak.
template <int H, typename In>
AFNEXT_INLINE void softmax(Group& g, const Chunk& chunk, float* scores, float* shrink) {
  using Exp = Exponential<typename In::Query>;
  const F32 none = broadcast(-__builtin_inff());
  F32 rows[kGroupRows];
  for (int h = 0; h < kGroupRows; ++h) rows[h] = none;
  for (int h = 0; h < H; ++h) {
    for (int64_t j = 0; j < chunk.readable; j += kLanes)
      rows[h] = max(rows[h], load(scores + h * kChunkKeys + j));
  }
  const F32 before = load(g.peak), peak = max(before, largest_of_each(rows));
  // Where nothing was seen yet all scores are -inf: any finite peak gives weights of zero.
  const F32 finite = select(peak == none, F32{}, peak);
  alignas(64) float base[kLanes];
  store(base, finite);
  for (int h = 0; h < kGroupRows; ++h) rows[h] = F32{};
  for (int h = 0; h < H; ++h) {
    for (int64_t j = 0; j < chunk.readable; j += kLanes) {
      float* at = scores + h * kChunkKeys + j;
      const F32 weight = Exp::weight(load(at) - base[h]);
      rows[h] += weight;
      store(at, In::kScaled ? weight * load(chunk.value_scales + j) : weight);
    }
  }
  const F32 factor = Exp::weight(before - finite);
  store(shrink, factor);
  store(g.peak, peak);
  store(g.total, fma(load(g.total), factor, sum_each(rows)));
}

// The rows that `keys` and `values` name are fetched while scores and then sums of values are
// computed.
template <int H, typename In>
void meet(const Band& band, int64_t group, Group& g, Chunk& chunk, Fetch keys, Fetch values,
          int64_t width) {
  alignas(64) float scores[H * kChunkKeys], shrink[kLanes];
  for (int64_t j = 0; j < chunk.readable; j += kLanes) {
    typename In::Sum sums[H] = {};
    if (j < chunk.count) multiply<H, In>(g, chunk.keys + j, keys, width, sums);
    for (int h = 0; h < H; ++h) {
      const F32 score = In::score(g, h, sums[h]);
      store(scores + h * kChunkKeys + j, In::kScaled ? score * load(chunk.key_scales + j) : score);
    }
  }
  const int64_t top = g.row / group, bottom = (g.row + H - 1) / group;
  if (band.first(bottom) > chunk.first || band.end(top) < chunk.first + chunk.readable)
    hide<H>(g, band, group, chunk, scores);
  softmax<H, In>(g, chunk, scores, shrink);
  In::template add_values<H>(g, chunk, values, scores, shrink, width);
}

// meet<rows>, for rows known at run time.
template <typename In, int H = kGroupRows>
AFNEXT_INLINE void meet_of(const Band& band, int64_t group, Group& g, Chunk& chunk,
                           const Fetch& keys, const Fetch& values, int64_t width) {
  if constexpr (H > 1) {
    if (g.rows != H) return meet_of<In, H - 1>(band, group, g, chunk, keys, values, width);
  }
  meet<H, In>(band, group, g, chunk, keys, values, width);
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
