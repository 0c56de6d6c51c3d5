// Small matrix products in registers: C[m, n] = sum over k of A(m, k) * B[k, n], lanes along n.
#pragma once

#include <type_traits>

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

// A tile is kTileRows x kTileVectors accumulators; with one row of B and one element of A that is
// what the registers hold (32 of them from AVX-512 on and on Arm, 16 before).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 3;

// A matrix that is read an element at a time: (m, k) lies at data[m * stride + k] ..
struct ByRow {
  const float* data;
  int64_t stride;
  AFNEXT_INLINE_METHOD F32 at(int64_t m, int64_t k) const {
    return broadcast(data[m * stride + k]);
  }
  AFNEXT_INLINE_METHOD static F32 add(F32 a, F32 b, F32 sum) { return fma(a, b, sum); }
};
// .. or at data[k * stride + m].
struct ByColumn {
  const float* data;
  int64_t stride;
  AFNEXT_INLINE_METHOD F32 at(int64_t m, int64_t k) const {
    return broadcast(data[k * stride + m]);
  }
  AFNEXT_INLINE_METHOD static F32 add(F32 a, F32 b, F32 sum) { return fma(a, b, sum); }
};

// What is taken off the sums every kStep steps of the depth, a row of `b_stride` floats each time:
// where it is the sum of nearly the same products, no sum grows large enough to lose what remains.
struct Nothing {
  static constexpr int64_t kStep = int64_t{1} << 40;
};
template <int64_t step>
struct Known {
  static constexpr int64_t kStep = step;
  const float* rows;
};

namespace {

template <int M, int N, typename Less, typename A, typename Sink>
AFNEXT_INLINE void tile(int64_t m, int64_t depth, A a, const float* b, int64_t b_stride,
                        const Less& less, const Sink& sink) {
  F32 sum[M][N] = {};
  for (int64_t first = 0; first < depth; first += Less::kStep) {
    const int64_t end = depth - first < Less::kStep ? depth : first + Less::kStep;
    for (int64_t k = first; k < end; ++k, b += b_stride) {
      F32 row[N];
      for (int n = 0; n < N; ++n) row[n] = load(b + n * kLanes);
      for (int i = 0; i < M; ++i) {
        const F32 x = a.at(m + i, k);
        for (int n = 0; n < N; ++n) sum[i][n] = A::add(x, row[n], sum[i][n]);
      }
    }
    if constexpr (!std::is_same_v<Less, Nothing>) {
      const float* known = less.rows + first / Less::kStep * b_stride;
      for (int i = 0; i < M; ++i) {
        for (int n = 0; n < N; ++n) sum[i][n] -= load(known + n * kLanes);
      }
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int n = 0; n < N; ++n) sink(m + i, n, sum[i][n]);
  }
}

// C of rows x N vectors; sink(m, n, value) receives the n-th vector of row m once. A sink that owns
// what it captures stays in registers: whatever it refers to is loaded again after each store.
template <int N, typename Less, typename A, typename Sink>
void product(int64_t rows, int64_t depth, A a, const float* b, int64_t b_stride, const Less& less,
             Sink sink) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    tile<kTileRows, N>(m, depth, a, b, b_stride, less, sink);
  if constexpr (kTileRows == 8) {
    if (rows - m >= 4) tile<4, N>(m, depth, a, b, b_stride, less, sink), m += 4;
  }
  if (rows - m >= 2) tile<2, N>(m, depth, a, b, b_stride, less, sink), m += 2;
  if (rows - m >= 1) tile<1, N>(m, depth, a, b, b_stride, less, sink);
}
template <int N, typename A, typename Sink>
AFNEXT_INLINE void product(int64_t rows, int64_t depth, A a, const float* b, int64_t b_stride,
                           const Sink& sink) {
  product<N>(rows, depth, a, b, b_stride, Nothing{}, sink);
}

// C of rows x any number of vectors.
template <typename A, typename Sink>
AFNEXT_INLINE void wide_product(int64_t rows, int64_t depth, A a, const float* b, int64_t b_stride,
                                int64_t vectors, const Sink& sink) {
  for (int64_t v = 0; v < vectors;) {
    const auto shifted = [sink, v](int64_t m, int n, F32 value) { sink(m, v + n, value); };
    const float* columns = b + v * kLanes;
    const int64_t left = vectors - v;
    if (left == 1) {
      product<1>(rows, depth, a, columns, b_stride, shifted), v += 1;
    } else if (left == 2 || left == 4) {
      product<2>(rows, depth, a, columns, b_stride, shifted), v += 2;
    } else {
      product<3>(rows, depth, a, columns, b_stride, shifted), v += 3;
    }
  }
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
