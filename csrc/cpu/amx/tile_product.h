// Products of bf16 matrices in tiles: float32 sums [16 * M, 16 * N] of rows by columns of pairs.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/amx/tile.h"

namespace afnext::cpu::AFNEXT_ISA {

// 16 rows of bf16, `stride` bytes apart.
struct TileRows {
  const bf16* data;
  int64_t stride;
};

// Columns by pairs of the depth, rows so many floats apart ..
struct TileColumns {
  const float* data;
  int64_t stride;
};
// .. and sums alike.
struct TileSums {
  float* data;
  int64_t stride;
};

namespace {

template <typename F, int... i>
AFNEXT_INLINE void call_with(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}
// f(0), f(1) .. with the numbers known to the compiler, as those of tiles must be.
template <int count, typename F>
AFNEXT_INLINE void unrolled(const F& f) {
  call_with(f, std::make_integer_sequence<int, count>{});
}

// sums += or, `first`, = rows @ columns, over `steps` times 32 elements of the depth. Sums are the
// first M * N tiles, columns the next N; rows share the rest, in turn. Columns, which meet many
// rows, are to stay in L1; rows come past them from L2.
template <int M, int N>
AFNEXT_INLINE void multiply_tiles(const TileRows (&rows)[M], TileColumns columns, int64_t steps,
                                  bool first, TileSums sums) {
  constexpr int kColumns = M * N, kRows = kColumns + N, kRowTiles = kTiles - kRows;
  static_assert(kRowTiles > 0);
  constexpr int64_t kFloat = sizeof(float);
  const auto sums_of = [&](int m, int n) {
    return sums.data + m * kTileHeight * sums.stride + n * kTileHeight;
  };
  unrolled<M * N>([&](auto i) {
    constexpr int tile = i;
    first ? tile_zero<tile>() : tile_load<tile>(sums_of(tile / N, tile % N), sums.stride * kFloat);
  });
  for (int64_t step = 0; step < steps; ++step) {
    const float* column = columns.data + step * kTileHeight * columns.stride;
    unrolled<N>([&](auto n) {
      tile_load<kColumns + n>(column + n * kTileHeight, columns.stride * kFloat);
    });
    unrolled<M>([&](auto m) {
      constexpr int row = m, tile = kRows + row % kRowTiles;
      tile_stream_load<tile>(rows[row].data + step * kTileBytes / 2, rows[row].stride);
      unrolled<N>([&](auto n) { tile_dot_bf16<row * N + n, tile, kColumns + n>(); });
    });
  }
  unrolled<M * N>([&](auto i) {
    constexpr int tile = i;
    tile_store<tile>(sums_of(tile / N, tile % N), sums.stride * kFloat);
  });
}

// The same for `tiles` tiles of rows, which rows_of(i) finds. As many at a time as keep four sums
// going: a product of tiles lasts longer than three others take.
template <int N, typename RowsOf>
AFNEXT_INLINE void product_in_tiles(int64_t tiles, const RowsOf& rows_of, TileColumns columns,
                                    int64_t steps, bool first, TileSums sums) {
  constexpr int M = N == 1 ? 4 : N == 2 ? 2 : 1;
  const auto sums_of = [&](int64_t i) {
    return TileSums{sums.data + i * kTileHeight * sums.stride, sums.stride};
  };
  int64_t i = 0;
  for (; i + M <= tiles; i += M) {
    TileRows rows[M];
    for (int m = 0; m < M; ++m) rows[m] = rows_of(i + m);
    multiply_tiles<M, N>(rows, columns, steps, first, sums_of(i));
  }
  for (; i < tiles; ++i) {
    const TileRows rows[1] = {rows_of(i)};
    multiply_tiles<1, N>(rows, columns, steps, first, sums_of(i));
  }
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
