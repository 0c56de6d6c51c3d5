// Tiles of the output in vector registers: rows of x, element by element, against panels.
#pragma once

#include "cpu/packed_blocks.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/rows.h"
#if defined(__AVX512BF16__)
#include "cpu/simd/dot_bf16.h"
#endif

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// A tile has two registers a row, `kLanes` columns from either half of a panel. A Product adds a
// step of them; `x` is the first row's words and rows lie `stride` apart. Elements and words are of
// one step.

// float32 weights.
struct FloatProduct {
  static constexpr int kRows = kLanes == 16 ? 14 : 6;  // the accumulators fill the registers
  static constexpr int kElements = 1, kWords = 1;

  template <int R>
  static AFNEXT_INLINE_METHOD void step(const float* x, int64_t stride, F32 left, F32 right,
                                        F32 (&sums)[R][2]) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const F32 v = in_register(broadcast(x[r * stride]));
      sums[r][0] = fma(v, left, sums[r][0]);
      sums[r][1] = fma(v, right, sums[r][1]);
    }
  }
  template <typename T>
  static AFNEXT_INLINE_METHOD void pack_row(const T* x, int64_t count, int64_t, float* words) {
    load_row(x, count, words);
  }
};

// bf16 weights and float32 words of x, two to a step.
struct WideProduct {
  static constexpr int kRows = kLanes == 16 ? 12 : 5;
  static constexpr int kElements = 2, kWords = 2;

  template <int R>
  static AFNEXT_INLINE_METHOD void step(const float* x, int64_t stride, F32 left, F32 right,
                                        F32 (&sums)[R][2]) {
    FloatProduct::step<R>(x, stride, low_of_pairs(left), low_of_pairs(right), sums);
    FloatProduct::step<R>(x + 1, stride, high_of_pairs(left), high_of_pairs(right), sums);
  }
  template <typename T>
  static AFNEXT_INLINE_METHOD void pack_row(const T* x, int64_t count, int64_t steps,
                                            float* words) {
    load_row(x, count, words);
    for (int64_t i = ceil_div(count, kLanes) * kLanes; i < 2 * steps; ++i) words[i] = 0.0f;
  }
};

#if defined(__AVX512BF16__)
// bf16 weights and bf16 pairs of x.
struct PairProduct {
  static constexpr int kRows = 14;
  static constexpr int kElements = 2, kWords = 1;

  template <int R>
  static AFNEXT_INLINE_METHOD void step(const float* x, int64_t stride, F32 left, F32 right,
                                        F32 (&sums)[R][2]) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const F32 v = in_register(broadcast(x[r * stride]));
      sums[r][0] = dot_bf16(v, left, sums[r][0]);
      sums[r][1] = dot_bf16(v, right, sums[r][1]);
    }
  }
  static AFNEXT_INLINE_METHOD void pack_row(const bf16* x, int64_t count, int64_t steps,
                                            float* words) {
    std::memcpy(words, x, static_cast<size_t>(count) * sizeof(bf16));
    std::memset(reinterpret_cast<bf16*>(words) + count, 0,
                static_cast<size_t>(2 * steps - count) * sizeof(bf16));
  }
};
#endif

template <typename Product>
struct VectorKernel {
  static constexpr int kRows = Product::kRows, kRowUnit = 1, kWords = Product::kWords;
  static constexpr int64_t kChunk = 256;
  static constexpr int64_t kStride = kChunk * kWords;  // words from row to row

  static void pack_rows(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t step,
                        int64_t steps, float* words) {
    constexpr bool pairs = Product::kElements == 2 && kWords == 1;
    if constexpr (!pairs) {
      if (a.dtype == DType::f32) return pack_from<float>(a, row, rows, step, steps, words);
    }
    pack_from<bf16>(a, row, rows, step, steps, words);
  }

  static void tile(int64_t rows, const float* words, const float* panel, int64_t steps, bool first,
                   float* sums) {
    tile_of<kRows>(rows, words, panel, steps, first, sums);
  }

 private:
  template <typename T>
  static void pack_from(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t step,
                        int64_t steps, float* words) {
    const int64_t first = step * Product::kElements;
    const int64_t count = smaller(a.weight.k - first, steps * Product::kElements);
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride + first;
    for (int64_t r = 0; r < rows; ++r, x += a.x_stride, words += kStride) {
      Product::pack_row(x, count, steps, words);
    }
  }

  // tile_rows<rows>, for rows known at run time.
  template <int R>
  static void tile_of(int64_t rows, const float* words, const float* panel, int64_t steps,
                      bool first, float* sums) {
    if constexpr (R > 1) {
      if (rows != R) return tile_of<R - 1>(rows, words, panel, steps, first, sums);
    }
    tile_rows<R>(words, panel, steps, first, sums);
  }

  template <int R>
  static void tile_rows(const float* words, const float* panel, int64_t steps, bool first,
                        float* sums) {
    constexpr int64_t kAhead = 1536 / sizeof(float);  // 1 to 2 KB measured best
    constexpr int64_t kHalf = kPanelColumns / 2;
    for (int64_t column = 0; column < kHalf; column += kLanes) {
      F32 tile[R][2] = {};
      if (!first) {
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r) {
          tile[r][0] = load(sums + r * kPanelColumns + column);
          tile[r][1] = load(sums + r * kPanelColumns + column + kHalf);
        }
      }
      const float* p = panel + column;
      for (int64_t s = 0; s < steps; ++s, p += kPanelColumns) {
        __builtin_prefetch(p + kAhead);
        __builtin_prefetch(p + kAhead + kHalf);
        Product::template step<R>(words + s * kWords, kStride, load(p), load(p + kHalf), tile);
      }
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
        store(sums + r * kPanelColumns + column, tile[r][0]);
        store(sums + r * kPanelColumns + column + kHalf, tile[r][1]);
      }
    }
  }
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
