// Attention over pages of int8 in the instructions that multiply bytes: integers throughout, which
// are exact, but for queries and weights, which become 16 bits in two planes of 8.
#pragma once

#include "cpu/paged_attention_meet.h"
#include "cpu/simd/zip_bytes.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

struct InBytes {
  using Query = bf16;
  using Page = int8_t;
  struct Sum {
    I32 high, low;
  };
  static constexpr int kQueryWords = 2, kChannels = 4 * kLanes;
  static constexpr int64_t kKeysAtOnce = 4 * kLanes;
  static constexpr bool kScaled = true, kInQuads = true;

  // The instruction wants one unsigned operand: 128 is added to keys, 128 times the query is taken
  // off their sums.
  AFNEXT_INLINE F32 words(const void* row, int64_t d) {
    return bit_cast<F32>(load_words(static_cast<const int8_t*>(row) + d) ^
                         static_cast<int32_t>(0x80808080u));
  }
  AFNEXT_INLINE Sum add(F32 words, const float* query, Sum sum) {
    const I32 key = bit_cast<I32>(words);
    return {dot_bytes(key, bit_cast<I32>(broadcast(query[0])), sum.high),
            dot_bytes(key, bit_cast<I32>(broadcast(query[kGroupRows])), sum.low)};
  }
  AFNEXT_INLINE F32 score(const Group& g, int h, Sum sum) {
    return __builtin_convertvector((sum.high << 8) + sum.low - g.offset[h], F32) * g.unit[h];
  }

  static void set_query(Group& g, int h, const float* x, int64_t width, float unit) {
    constexpr float most = 32512.0f;  // whose upper byte, rounded, is 127
    float peak = 0.0f;
    for (int64_t d = 0; d < width; ++d) {
      const float size = __builtin_fabsf(x[d]);
      peak = size > peak || size != size ? size : peak;
    }
    const bool finite = peak < __builtin_inff();
    const float inverse = finite && peak > kNothing ? most / peak : 0.0f;
    int32_t sum = 0;
    for (int64_t d = 0; d < width; d += 4) {
      int8_t high[4], low[4];
      for (int i = 0; i < 4; ++i) {
        const float whole = __builtin_rintf(x[d + i] * inverse);
        const int32_t value = finite ? static_cast<int32_t>(whole) : 0;
        high[i] = static_cast<int8_t>((value + 128) >> 8);
        low[i] = static_cast<int8_t>(value - high[i] * 256);
        sum += value;
      }
      float* word = g.queries + d / 4 * 2 * kGroupRows + h;
      std::memcpy(word, high, 4);
      std::memcpy(word + kGroupRows, low, 4);
    }
    g.offset[h] = 128 * sum;
    g.unit[h] = finite ? peak / most * unit : __builtin_nanf("");
  }

  // The values of a chunk, [vectors of channels, quads of keys, kLanes]: keys of a quad are kLanes
  // apart.
  AFNEXT_INLINE void zip_values(const Chunk& chunk, int64_t width) {
    for_quads(chunk, [&](int64_t j, int64_t quad) __attribute__((always_inline)) {
      for (int64_t d = 0; d < width; d += kChannels) {
        I32 rows[4], quads[4];
        for (int i = 0; i < 4; ++i)
          rows[i] = load_words(static_cast<const int8_t*>(chunk.values[j + i * kLanes]) + d);
        zip_bytes(rows, quads);
        for (int i = 0; i < 4; ++i)
          store(chunk.quads + ((d / kLanes + i) * kQuads + quad) * kLanes, bit_cast<F32>(quads[i]));
      }
    });
  }

  template <int H>
  AFNEXT_INLINE void add_values(Group& g, const Chunk& chunk, const void* const* soon,
                                float* weights, const float* shrink, int64_t width) {
    alignas(64) float step[kLanes];
    split_weights<H>(weights, chunk.readable, step);
    for (int64_t vector = 0; vector < width / kLanes; ++vector) {
      const float* values = chunk.quads + vector * kQuads * kLanes;
      Sum sums[H] = {};
      for_quads(chunk, [&](int64_t j, int64_t quad) __attribute__((always_inline)) {
        fetch_line(static_cast<const int8_t*>(soon[j]) + vector);
        const I32 value = bit_cast<I32>(load(values + quad * kLanes));
        const float* weight = weights + quad;
        for (int h = 0; h < H; ++h, weight += kChunkKeys) {
          const I32 high = bit_cast<I32>(broadcast(weight[0]));
          const I32 low = bit_cast<I32>(broadcast(weight[kQuads]));
          sums[h] = {dot_bytes(high, value, sums[h].high), dot_bytes(low, value, sums[h].low)};
        }
      });
      for (int h = 0; h < H; ++h) {
        float* out = g.out_at(vector, h);
        const F32 sum = __builtin_convertvector((sums[h].high << 8) + sums[h].low, F32);
        store(out, fma(load(out), broadcast(shrink[h]), sum * step[h]));
      }
    }
  }

  static void get_out(const Group& g, int h, int64_t width, float* x) {
    for (int64_t d = 0; d < width; d += kChannels) {
      for (int v = 0; v < 4; ++v) {
        const float* from = g.out_at(d / kLanes + v, h);
        for (int l = 0; l < kLanes / 4; ++l)
          std::memcpy(x + d + 16 * l + 4 * v, from + 4 * l, 4 * sizeof(float));
      }
    }
  }

 private:
  static constexpr int64_t kQuads = kChunkKeys / 4;
  static constexpr float kNothing = 1e-30f;  // what is less counts as zero: its inverse overflows

  // body(first key, number of the quad)
  template <typename Body>
  AFNEXT_INLINE void for_quads(const Chunk& chunk, Body body) {
    for (int64_t first = 0; first < chunk.count; first += kKeysAtOnce) {
      const int64_t left = chunk.count - first, count = left < kLanes ? left : kLanes;
      for (int64_t i = 0; i < count; ++i) body(first + i, first / 4 + i);
    }
  }

  // Weights become whole numbers of 16 bits, of steps that suit the largest of their row: quads of
  // their upper bytes, then of their lower ones.
  template <int H>
  AFNEXT_INLINE void split_weights(float* weights, int64_t readable, float* step) {
    constexpr float most = 65535.0f;
    F32 peaks[kGroupRows] = {}, bad[kGroupRows] = {};  // bad: 0, or NaN where a weight is
    for (int h = 0; h < H; ++h) {
      for (int64_t j = 0; j < readable; j += kLanes) {
        const F32 weight = load(weights + h * kChunkKeys + j);
        peaks[h] = max(peaks[h], weight);
        bad[h] += weight * 0.0f;
      }
    }
    alignas(64) float peak[kLanes];
    store(peak, largest_of_each(peaks));
    store(step, load(peak) / most + sum_each(bad));
    const F32 shifter = broadcast(12582912.0f);  // 1.5 * 2**23: the lower bits then hold the number
    for (int h = 0; h < H; ++h) {
      float* row = weights + h * kChunkKeys;
      const F32 inverse = broadcast(peak[h] > kNothing ? most / peak[h] : 0.0f);
      alignas(64) float high[kQuads], low[kQuads];
      for (int64_t j = 0; j < readable; j += 4 * kLanes) {
        U32 word[4];
        for (int i = 0; i < 4; ++i)
          word[i] = bit_cast<U32>(fma(load(row + j + i * kLanes), inverse, shifter));
        const U32 even = (word[0] & 0xffffu) | word[2] << 16;
        const U32 odd = (word[1] & 0xffffu) | word[3] << 16;
        store(low + j / 4, bit_cast<F32>((even & 0xff00ffu) | (odd & 0xff00ffu) << 8));
        store(high + j / 4, bit_cast<F32>((even >> 8 & 0xff00ffu) | (odd & 0xff00ff00u)));
      }
      std::memcpy(row, high, sizeof(high));
      std::memcpy(row + kQuads, low, sizeof(low));
    }
  }
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
