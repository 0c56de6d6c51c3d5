// A product of bfloat16 rows and panels (cpu/packed_blocks.h) on AMX tiles: 2 x 2 tiles of sums,
// the chunk of a panel in L1, rows of x from L2.
#pragma once

#include "cpu/amx/tile.h"
#include "cpu/pack.h"
#include "cpu/packed_blocks.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

struct TileKernel {
  static constexpr int kRows = 2 * kTileHeight, kRowUnit = kTileHeight, kWords = 1;
  static constexpr bool kPairs = true;
  static constexpr int64_t kChunk = 256, kBlockTiles = 16, kBlockPanels = 16;
  using Session = TileSession;

  template <typename MakeAhead>
  static void tile(int64_t rows, const float* words, const float* panel, int64_t steps, bool first,
                   float* sums, const MakeAhead& make_ahead) {
    auto ahead = make_ahead(ceil_div(steps, kTileHeight));
    rows > kTileHeight ? tiles<2>(words, panel, steps, first, sums, ahead)
                       : tiles<1>(words, panel, steps, first, sums, ahead);
  }

 private:
  static constexpr int64_t kRow = kLineWords * 4;  // bytes

  // Sums are tiles 0 to 3, those of a row of tiles side by side; x has 4 and 5, the panel 6 and 7.
  template <int height, typename Ahead>
  static void tiles(const float* words, const float* panel, int64_t steps, bool first, float* sums,
                    Ahead& ahead) {
    constexpr int64_t kTileSums = kTileHeight * kPanelColumns, kLeft = kPanelColumns / 2;
    if (first) {
      tile_zero<0>(), tile_zero<1>();
      if constexpr (height == 2) tile_zero<2>(), tile_zero<3>();
    } else {
      tile_load<0>(sums, kStepBytes), tile_load<1>(sums + kLeft, kStepBytes);
      if constexpr (height == 2) {
        tile_load<2>(sums + kTileSums, kStepBytes);
        tile_load<3>(sums + kTileSums + kLeft, kStepBytes);
      }
    }
    for (int64_t step = 0; step < steps; step += kTileHeight) {
      if constexpr (height == 1) {
        prefetch<2 * kTileHeight>(panel + kTileHeight * kPanelColumns);
      } else {
        prefetch<4>(sums + 2 * kTileSums + step / kTileHeight * 4 * kLineWords);
        ahead.step();
      }
      tile_load<6>(panel, kStepBytes), tile_load<7>(panel + kLeft, kStepBytes);
      tile_stream_load<4>(words, kRow);
      tile_dot_bf16<0, 4, 6>(), tile_dot_bf16<1, 4, 7>();
      if constexpr (height == 2) {
        tile_stream_load<5>(words + kTileHeight * kLineWords, kRow);
        tile_dot_bf16<2, 5, 6>(), tile_dot_bf16<3, 5, 7>();
      }
      panel += kTileHeight * kPanelColumns, words += height * kTileHeight * kLineWords;
    }
    tile_store<0>(sums, kStepBytes), tile_store<1>(sums + kLeft, kStepBytes);
    if constexpr (height == 2) {
      tile_store<2>(sums + kTileSums, kStepBytes);
      tile_store<3>(sums + kTileSums + kLeft, kStepBytes);
    }
  }

  // With few rows tiles wait for the weights in memory, 2 KB ahead; with many for sums in L2, those
  // of the next rows, a few lines at every step.
  template <int lines>
  static AFNEXT_INLINE_METHOD void prefetch(const float* coming) {
    for (int64_t i = 0; i < lines * kLineWords; i += kLineWords) __builtin_prefetch(coming + i);
  }
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
