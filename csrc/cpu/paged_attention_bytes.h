// Attention over pages of int8 in the instructions that multiply bytes: integers throughout, which
// are exact, but for queries and weights, which become 16 bits: two planes of 8, whose sums are
// added in the end. The instructions want one operand unsigned: 128 is added to keys and values,
// and what that adds to a sum is taken off it.
#pragma once

#include "cpu/paged_attention_meet.h"
#include "cpu/simd/zip.h"

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

  AFNEXT_INLINE F32 words(const void* row, int64_t d) { return bit_cast<F32>(plus_128(row, d)); }
  AFNEXT_INLINE Sum add(F32 words, const float* query, Sum sum) {
    const I32 key = bit_cast<I32>(words);
    return {dot_bytes_broadcast(key, query, sum.high),
            dot_bytes_broadcast(key, query + kGroupRows, sum.low)};
  }
  AFNEXT_INLINE F32 score(const Group& g, int h, Sum sum) {
    return whole(sum, g.offset[h]) * g.unit[h];
  }

  static void set_query(Group& g, int h, const float* x, int64_t width, float unit) {
    F32 peaks{}, bad{};  // bad: 0, or NaN where a channel is not finite
    for (int64_t d = 0; d < width; d += kLanes) {
      const F32 channels = load(x + d);
      peaks = max(peaks, max(channels, -channels));
      bad += channels * 0.0f;
    }
    const float peak = largest(peaks), inverse = peak > kNothing ? kMost / peak : 0.0f;
    int32_t whole[kMaxDim + 4 * kLanes], total = 0;
    int8_t high[kMaxDim + 4 * kLanes], low[kMaxDim + 4 * kLanes];
    for (int64_t d = 0; d < width; ++d) {
      const float rounded = __builtin_rintf(x[d] * inverse);
      whole[d] = rounded >= -kMost && rounded <= kMost ? static_cast<int32_t>(rounded) : 0;
      total += whole[d];
    }
    for (int64_t d = 0; d < width; ++d) {
      high[d] = static_cast<int8_t>((whole[d] + 128) >> 8);
      low[d] = static_cast<int8_t>(whole[d] - high[d] * 256);
    }
    for (int64_t d = 0; d < width; d += 4) {
      float* word = g.queries + d / 4 * kQueryWords * kGroupRows + h;
      std::memcpy(word, high + d, 4);
      std::memcpy(word + kGroupRows, low + d, 4);
    }
    g.offset[h] = 128 * total;
    g.unit[h] = (peak + sum(bad)) / kMost * unit;
  }

  // The values of a chunk, [vectors of channels, quads of keys, kLanes]: keys of a quad are kLanes
  // apart.
  AFNEXT_INLINE void zip_values(const Chunk& chunk, int64_t width) {
    for_quads(chunk, [&](int64_t j, int64_t quad) __attribute__((always_inline)) {
      for (int64_t d = 0; d < width; d += kChannels) {
        I32 rows[4], quads[4];
        for (int i = 0; i < 4; ++i) rows[i] = plus_128(chunk.values[j + i * kLanes], d);
        zip_blocks(rows, quads);
        for (int i = 0; i < 4; ++i)
          store(chunk.quads + ((d / kLanes + i) * kQuads + quad) * kLanes, bit_cast<F32>(quads[i]));
      }
    });
  }

  template <int H>
  AFNEXT_INLINE void add_values(Group& g, Chunk& chunk, Fetch& fetch, float* weights,
                                const float* shrink, int64_t width) {
    if (!chunk.zipped) zip_values(chunk, width);
    chunk.zipped = true;
    Steps steps;
    split_weights<H>(weights, chunk.readable, steps);
    for (int64_t vector = 0; vector < width / kLanes; ++vector) {
      const float* values = chunk.quads + vector * kQuads * kLanes;
      Sum sums[H] = {};
      for_quads(chunk, [&](int64_t, int64_t quad) __attribute__((always_inline)) {
        fetch.next(1);
        const I32 value = bit_cast<I32>(load(values + quad * kLanes));
        const float* weight = weights + quad;
        for (int h = 0; h < H; ++h, weight += kChunkKeys) {
          sums[h].high = dot_bytes_broadcast(value, weight, sums[h].high);
          sums[h].low = dot_bytes_broadcast(value, weight + kQuads, sums[h].low);
        }
      });
      for (int h = 0; h < H; ++h) {
        float* out = g.out_at(vector, h);
        const F32 sum = whole(sums[h], steps.offset[h]) * steps.size[h];
        store(out, fma(load(out), broadcast(shrink[h]), sum));
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

  static constexpr float kMost = 32512.0f;  // whose upper byte, rounded, is 127

  AFNEXT_INLINE I32 plus_128(const void* row, int64_t d) {
    return load_words(static_cast<const int8_t*>(row) + d) ^ static_cast<int32_t>(0x80808080u);
  }
  // What both planes sum up to. It may overflow on the way.
  AFNEXT_INLINE F32 whole(Sum sum, int32_t offset) {
    const U32 both = (bit_cast<U32>(sum.high) << 8) + bit_cast<U32>(sum.low);
    return __builtin_convertvector(bit_cast<I32>(both - static_cast<uint32_t>(offset)), F32);
  }

  // body(first key, number of the quad)
  template <typename Body>
  AFNEXT_INLINE void for_quads(const Chunk& chunk, Body body) {
    for (int64_t first = 0; first < chunk.count; first += kKeysAtOnce) {
      const int64_t left = chunk.count - first, count = left < kLanes ? left : kLanes;
      for (int64_t i = 0; i < count; ++i) body(first + i, first / 4 + i);
    }
  }

  // What a weight of 1 stands for, by row, and 128 times the sum of the weights.
  struct Steps {
    alignas(64) float size[kLanes];
    int32_t offset[kGroupRows];
  };

  // Weights become whole numbers of 16 bits, of steps that suit the largest of their row: quads of
  // their upper bytes, then of their lower ones, both signed.
  template <int H>
  AFNEXT_INLINE void split_weights(float* weights, int64_t readable, Steps& steps) {
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
    store(steps.size, load(peak) / kMost + sum_each(bad));
    // 1.5 * 2**23, which leaves a whole number in the lower bits, and 128, which rounds its upper
    // byte: the lower one then is 128 too large.
    const F32 shifter = broadcast(12582912.0f + 128.0f);
    F32 sums[kGroupRows] = {};
    for (int h = 0; h < H; ++h) {
      float* row = weights + h * kChunkKeys;
      const F32 inverse = broadcast(peak[h] > kNothing ? kMost / peak[h] : 0.0f);
      alignas(64) float high[kQuads], low[kQuads];
      for (int64_t j = 0; j < readable; j += 4 * kLanes) {
        U32 word[4];
        for (int i = 0; i < 4; ++i) {
          const F32 shifted = fma(load(row + j + i * kLanes), inverse, shifter);
          sums[h] += shifted - shifter;
          word[i] = bit_cast<U32>(shifted);
        }
        const U32 even = (word[0] & 0xffffu) | word[2] << 16;
        const U32 odd = (word[1] & 0xffffu) | word[3] << 16;
        store(low + j / 4,
              bit_cast<F32>(((even & 0xff00ffu) | (odd & 0xff00ffu) << 8) ^ 0x80808080u));
        store(high + j / 4, bit_cast<F32>((even >> 8 & 0xff00ffu) | (odd & 0xff00ff00u)));
      }
      std::memcpy(row, high, sizeof(high));
      std::memcpy(row + kQuads, low, sizeof(low));
    }
    alignas(64) float sum[kLanes];
    store(sum, sum_each(sums));  // exact: at most 2**22
    for (int h = 0; h < H; ++h) steps.offset[h] = 128 * static_cast<int32_t>(sum[h]);
  }
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
