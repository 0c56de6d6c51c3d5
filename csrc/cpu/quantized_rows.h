// Rows of x as integers, with scales.
//
// A tile of `rows` rows is a run of blocks; a block holds, in 32-bit words,
//   integers of x       32 * rows * Engine::kWords, in the Engine's order
//   float32 [rows]      scales
//   int32 [groups][rows]    where sums of a group start: undoes the offset of the weights
//   float32 [groups][rows]  sums of the integers of a group
// A block with a NaN or infinity has scale NaN and zeros: NaN is what its row becomes.
#pragma once

#include "cpu/packed_linear.h"
#include "cpu/quantized_panel.h"
#include "cpu/simd/dot_integers.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kQuads = kBlock / 4;

typedef int8_t I8 __attribute__((vector_size(kLanes)));
typedef int16_t I16 __attribute__((vector_size(kLanes * 2)));

// 128 integers as bytes; 16 bits are two planes, value = 256 * high + low.
template <int planes>
void split_bytes(const float* integers, int8_t (&bytes)[planes][kBlock]) {
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    I32 value = __builtin_convertvector(load(integers + i), I32);
    if constexpr (planes == 2) {
      const I32 high = (value + 128) >> 8;
      value -= high << 8;
      const I8 narrow_high = __builtin_convertvector(high, I8);
      std::memcpy(bytes[0] + i, &narrow_high, sizeof(narrow_high));
    }
    const I8 narrow_value = __builtin_convertvector(value, I8);
    std::memcpy(bytes[planes - 1] + i, &narrow_value, sizeof(narrow_value));
  }
}

// An Engine is how integers of x are multiplied: write() places those of row `r` of `rows`.

// [32 quads][rows][planes] words of four bytes, for dot_bytes.
template <int planes>
struct Bytes {
  static constexpr int kPlanes = planes, kWords = planes;

  static void write(const float* integers, int64_t r, int64_t rows, int32_t* words) {
    int8_t bytes[planes][kBlock];
    split_bytes<planes>(integers, bytes);
    words += r * planes;
    for (int64_t quad = 0; quad < kQuads; ++quad, words += rows * planes) {
      for (int p = 0; p < planes; ++p) std::memcpy(words + p, bytes[p] + 4 * quad, 4);
    }
  }
  // sums[r][p][c] += the products of a quad of C * kLanes columns with that of row r.
  template <int R, int C>
  static AFNEXT_INLINE_METHOD void step(const int32_t* words, const I32 (&weight)[C],
                                        I32 (&sums)[R][planes][C]) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < planes; ++p) {
        I32 x = broadcast_word(words[r * planes + p]);
        if constexpr (C > 1) x = bit_cast<I32>(in_register(bit_cast<F32>(x)));
        for (int c = 0; c < C; ++c) sums[r][p][c] = dot_bytes(weight[c], x, sums[r][p][c]);
      }
    }
  }
};

// [32 quads][rows][2] pairs of 16 bits, for dot_pairs: elements 0 and 2 of a quad, then 1 and 3,
// which is how a mask and a shift widen the weight's bytes.
struct Pairs {
  static constexpr int kPlanes = 1, kWords = 2;

  static void write(const float* integers, int64_t r, int64_t rows, int32_t* words) {
    int16_t narrow[kBlock];
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const I16 value =
          __builtin_convertvector(__builtin_convertvector(load(integers + i), I32), I16);
      std::memcpy(narrow + i, &value, sizeof(value));
    }
    words += r * kWords;
    for (int64_t quad = 0; quad < kQuads; ++quad, words += rows * kWords) {
      const int16_t* q = narrow + 4 * quad;
      const int16_t pairs[4] = {q[0], q[2], q[1], q[3]};
      std::memcpy(words, pairs, sizeof(pairs));
    }
  }
  template <int R, int C>
  static AFNEXT_INLINE_METHOD void step(const int32_t* words, const I32 (&weight)[C],
                                        I32 (&sums)[R][1][C]) {
    I32 even[C], odd[C];
    for (int c = 0; c < C; ++c) {
      even[c] = weight[c] & 0x00ff00ff;
      odd[c] = (weight[c] >> 8) & 0x00ff00ff;
    }
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const I32 first = broadcast_word(words[2 * r]), second = broadcast_word(words[2 * r + 1]);
      for (int c = 0; c < C; ++c) {
        sums[r][0][c] = dot_pairs(odd[c], second, dot_pairs(even[c], first, sums[r][0][c]));
      }
    }
  }
};

template <typename Engine>
int64_t block_words(const QuantizedPanel& q, int64_t rows) {
  return rows * (kQuads * Engine::kWords + 1 + 2 * q.groups);
}

// Of elements of x that share a scale.
struct Extent {
  float most;
  bool finite;
};

template <typename T>
Extent extent_of(const T* x, int64_t count) {
  F32 high{}, zero{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 v = count - i >= kLanes ? load(x + i) : load_n(x + i, static_cast<int>(count - i));
    high = max(max(v, -v), high);
    zero += v * 0.0f;  // NaN and infinity leave NaN
  }
  return {largest(high), sum(zero) == 0.0f};
}

// Block of `count` <= 128 elements at x becomes that of row `r` among `rows` in `out`.
template <typename Engine, typename T>
void quantize_block(const QuantizedPanel& q, float limit, const Extent& extent, const T* x,
                    int64_t count, int64_t r, int64_t rows, int32_t* out) {
  float block[kBlock];
  if (count < kBlock) std::memset(block, 0, sizeof(block));
  load_row(x, count, block);
  const auto [most, finite] = extent;
  const bool tiny = most < 1e-30f;  // the reciprocal could overflow
  const float inverse = tiny || !finite ? 0.0f : limit / most;
  const F32 shifter = broadcast(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    const F32 v = load(block + i) * inverse;
    store(block + i, finite ? (v + shifter) - shifter : F32{});
  }
  Engine::write(block, r, rows, out);

  float* scales = reinterpret_cast<float*>(out + kQuads * Engine::kWords * rows);
  int32_t* starts = reinterpret_cast<int32_t*>(scales + rows);
  float* sums = reinterpret_cast<float*>(starts + q.groups * rows);
  scales[r] = !finite ? __builtin_nanf("") : tiny ? 0.0f : most / limit;
  const int32_t offset = q.zero_points ? 0 : q.bits == 8 ? 128 : 8;
  for (int64_t g = 0; g < q.groups; ++g) {
    F32 total{};  // exact: 128 integers of 15 bits
    for (int64_t i = 0; i < q.group; i += kLanes) total += load(block + g * q.group + i);
    sums[g * rows + r] = sum(total);
    starts[g * rows + r] = -offset * static_cast<int32_t>(sums[g * rows + r]);
  }
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
