// How a product with packed weights is cut into tiles (Goto and van de Geijn, 2008), whatever
// computes a tile.
//
// A Kernel has
//   kRows        rows of x in a tile
//   kRowUnit     rows come in multiples of this
//   kWords       32-bit words of x that meet one step of a panel
//   kChunk       steps of a panel that a tile takes at a time
//   pack_rows(a, row, rows, step, steps, words)    rows of x, packed as tile() reads them
//   tile(rows, words, panel, steps, first, sums)   adds to sums [rows, 32], or sets them first
// Sums are kept in float32 between chunks and each output is summed in order of K: no bit depends
// on the blocks, the threads or the other rows of x.
#pragma once

#include "cpu/packed_epilogue.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

AFNEXT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
AFNEXT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows cut into tiles of even height: 15 rows are 8 + 7, not 14 + 1.
template <typename Kernel>
struct RowTiles {
  int64_t rows, units, count;
  explicit RowTiles(int64_t n)
      : rows(n),
        units(ceil_div(n, Kernel::kRowUnit)),
        count(ceil_div(units, Kernel::kRows / Kernel::kRowUnit)) {}
  int64_t begin(int64_t tile) const {
    return smaller(units * tile / count * Kernel::kRowUnit, rows);
  }
  int64_t height(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

template <typename Kernel>
constexpr int64_t kTileWords = Kernel::kRows * Kernel::kChunk * Kernel::kWords;
template <typename Kernel>
constexpr int64_t kTileSums = Kernel::kRows * kPanelColumns;

AFNEXT_INLINE const float* panel_at(const PackedLinearArgs& a, int64_t steps, int64_t panel,
                                    int64_t step) {
  return static_cast<const float*>(a.weight.data) + (panel * steps + step) * kPanelColumns;
}

// Few rows: all of x is packed before, and every panel is read once, from end to end.
template <typename Kernel>
void few_rows(const PackedLinearArgs& a, int64_t steps) {
  const RowTiles<Kernel> tiles(a.m);
  const int64_t chunks = steps > 0 ? ceil_div(steps, Kernel::kChunk) : 1;
  float* words = scratch<float>(0, static_cast<size_t>(chunks * tiles.count * kTileWords<Kernel>));
  for (int64_t i = 0; i < chunks * tiles.count; ++i) {
    const int64_t step = i / tiles.count * Kernel::kChunk, tile = i % tiles.count;
    Kernel::pack_rows(a, tiles.begin(tile), tiles.height(tile), step,
                      smaller(steps - step, Kernel::kChunk), words + i * kTileWords<Kernel>);
  }
  constexpr int64_t kBytesPerThread = 1 << 17;  // below this, waking a thread costs more
  parallel_for(
      a.weight.panels(), kBytesPerThread / (steps * kStepBytes + 1) + 1,
      [&](int64_t begin, int64_t end) {
        float* sums = scratch<float>(1, static_cast<size_t>(tiles.count * kTileSums<Kernel>));
        for (int64_t panel = begin; panel < end; ++panel) {
          for (int64_t i = 0; i < chunks * tiles.count; ++i) {
            const int64_t step = i / tiles.count * Kernel::kChunk, tile = i % tiles.count;
            Kernel::tile(tiles.height(tile), words + i * kTileWords<Kernel>,
                         panel_at(a, steps, panel, step), smaller(steps - step, Kernel::kChunk),
                         step == 0, sums + tile * kTileSums<Kernel>);
          }
          for (int64_t t = 0; t < tiles.count; ++t) {
            finish(a, tiles.begin(t), tiles.height(t), panel, sums + t * kTileSums<Kernel>);
          }
        }
      });
}

// A block of the output: its rows of x are packed a chunk at a time and stay in L2.
template <typename Kernel>
void block(const PackedLinearArgs& a, int64_t steps, int64_t row, int64_t rows, int64_t panel,
           int64_t panels) {
  const RowTiles<Kernel> tiles(rows);
  float* words = scratch<float>(0, static_cast<size_t>(tiles.count * kTileWords<Kernel>));
  float* sums = scratch<float>(1, static_cast<size_t>(panels * tiles.count * kTileSums<Kernel>));
  for (int64_t step = 0; step == 0 || step < steps; step += Kernel::kChunk) {
    const int64_t count = smaller(steps - step, Kernel::kChunk);
    for (int64_t t = 0; t < tiles.count; ++t) {
      Kernel::pack_rows(a, row + tiles.begin(t), tiles.height(t), step, count,
                        words + t * kTileWords<Kernel>);
    }
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t t = 0; t < tiles.count; ++t) {
        float* tile_sums = sums + (p * tiles.count + t) * kTileSums<Kernel>;
        Kernel::tile(tiles.height(t), words + t * kTileWords<Kernel>,
                     panel_at(a, steps, panel + p, step), count, step == 0, tile_sums);
        if (step + count == steps) {
          finish(a, row + tiles.begin(t), tiles.height(t), panel + p, tile_sums);
        }
      }
    }
  }
}

template <typename Kernel>
void many_rows(const PackedLinearArgs& a, int64_t steps) {
  constexpr int64_t kBlockRows = 252 / Kernel::kRows * Kernel::kRows, kBlockPanels = 8;
  const int64_t row_blocks = ceil_div(a.m, kBlockRows), panels = a.weight.panels();
  // Narrower blocks where there would be too few for the threads to share evenly.
  const int64_t wanted = ceil_div(4 * num_threads(), row_blocks);
  const int64_t width = smaller(ceil_div(panels, wanted), kBlockPanels);
  const RowTiles<Kernel> tiles(a.m);
  parallel_for(row_blocks * ceil_div(panels, width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t i = job % row_blocks, panel = job / row_blocks * width;
      const int64_t row = tiles.begin(tiles.count * i / row_blocks);
      block<Kernel>(a, steps, row, tiles.begin(tiles.count * (i + 1) / row_blocks) - row, panel,
                    smaller(panels - panel, width));
    }
  });
}

template <typename Kernel>
void packed_product(const PackedLinearArgs& a, int64_t steps) {
  constexpr int64_t kFewRows = 64;
  a.m <= kFewRows ? few_rows<Kernel>(a, steps) : many_rows<Kernel>(a, steps);
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
