// Tiles of the output in vector registers: rows of x, element by element, against panels.
#pragma once

#include "cpu/packed_blocks.h"
#include "cpu/simd/dot_bf16.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// A tile has two registers a row, `kLanes` columns from either half of a panel. A Product adds a
// step of them; `x` is the first row's words, and the other rows follow at a cache line's distance.

// float32 weights.
struct FloatProduct {
  static constexpr int kRows = kLanes == 16 ? 14 : 6;  // the accumulators fill the registers
  static constexpr int kWords = 1;
  static constexpr bool kPairs = false;

  template <int R>
  static AFNEXT_INLINE_METHOD void step(const float* x, F32 left, F32 right, F32 (&sums)[R][2]) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const F32 v = in_register(broadcast(x[r * kLineWords]));
      sums[r][0] = fma(v, left, sums[r][0]);
      sums[r][1] = fma(v, right, sums[r][1]);
    }
  }
};

// bf16 weights and float32 words of x, two to a step.
struct WideProduct {
  static constexpr int kRows = kLanes == 16 ? 12 : 5;
  static constexpr int kWords = 2;
  static constexpr bool kPairs = false;

  template <int R>
  static AFNEXT_INLINE_METHOD void step(const float* x, F32 left, F32 right, F32 (&sums)[R][2]) {
    FloatProduct::step<R>(x, low_of_pairs(left), low_of_pairs(right), sums);
    FloatProduct::step<R>(x + 1, high_of_pairs(left), high_of_pairs(right), sums);
  }
};

#if defined(__AVX512BF16__)
// bf16 weights and bf16 pairs of x.
struct PairProduct {
  static constexpr int kRows = 14;
  static constexpr int kWords = 1;
  static constexpr bool kPairs = true;

  template <int R>
  static AFNEXT_INLINE_METHOD void step(const float* x, F32 left, F32 right, F32 (&sums)[R][2]) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const F32 v = in_register(broadcast(x[r * kLineWords]));
      sums[r][0] = dot_pairs(v, left, sums[r][0]);
      sums[r][1] = dot_pairs(v, right, sums[r][1]);
    }
  }
};
#endif

// Products of bf16 x and bf16 weights.
#if defined(__AVX512BF16__)
using Bf16Product = PairProduct;
#else
using Bf16Product = WideProduct;
#endif

template <typename Product>
struct VectorKernel {
  static constexpr int kRows = Product::kRows, kRowUnit = 1, kWords = Product::kWords;
  static constexpr bool kPairs = Product::kPairs;
  // A chunk is summed on its own, which keeps long float32 sums as exact as torch's.
  static constexpr int64_t kChunk = kPairs ? 256 : 128, kBlockTiles = 280 / kRows,
                           kBlockPanels = 16;
  struct Session {};

  template <typename Chunk, typename MakeAhead>
  static void tile(int64_t rows, const float* words, const Chunk& panel, int64_t steps, bool first,
                   float* sums, const MakeAhead&) {
    tile_of<kRows>(rows, words, panel, steps, first, sums);
  }

 private:
  // tile_rows<rows>, for rows known at run time.
  template <int R, typename Chunk>
  static void tile_of(int64_t rows, const float* words, const Chunk& panel, int64_t steps,
                      bool first, float* sums) {
    if constexpr (R > 1) {
      if (rows != R) return tile_of<R - 1>(rows, words, panel, steps, first, sums);
    }
    tile_rows<R>(words, panel, steps, first, sums);
  }

  template <int R, typename Chunk>
  static void tile_rows(const float* words, const Chunk& panel, int64_t steps, bool first,
                        float* sums) {
    constexpr int64_t kHalf = kPanelColumns / 2, kLineSteps = kLineWords / kWords;
    for (int64_t column = 0; column < kHalf; column += kLanes) {
      F32 tile[R][2] = {};
      const float *p = panel.words + column, *x = words;
      for (int64_t left = steps; left > 0; left -= kLineSteps, x += R * kLineWords) {
        const int64_t count = smaller(left, kLineSteps);
        for (int64_t s = 0; s < count; ++s, p += kPanelColumns) {
          panel.fetch(p, steps - left + s);
          Product::template step<R>(x + s * kWords, load(p), load(p + kHalf), tile);
        }
      }
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
        float* row = sums + r * kPanelColumns + column;
        store(row, first ? tile[r][0] : load(row) + tile[r][0]);
        store(row + kHalf, first ? tile[r][1] : load(row + kHalf) + tile[r][1]);
      }
    }
  }
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
