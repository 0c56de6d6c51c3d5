// How a product with dense weights is cut into tiles (Goto and van de Geijn, 2008), whatever
// computes a tile.
//
// Panels gives the chunks of the panels: chunk(panel, step, steps, next_panel, next_step) is what
// tile() takes, good until the thread's next call, which will be for the place that is named last;
// complete(panel, rows, sums) is called with the sums of a tile before they become outputs.
//
// A Kernel has
//   kRows, kRowUnit           rows of x in a tile, and what they are padded to a multiple of
//   kWords, kPairs            32-bit words of x that meet one step of a panel: floats, or pairs of
//   bf16 kChunk                    steps of a panel that a tile takes at a time, a multiple of 16
//   kBlockTiles, kBlockPanels the tiles of a block, whose x and sums stay in L2
//   Session                   lives in a thread while it calls tile()
//   tile(rows, words, chunk, steps, first, sums, ahead)  adds to sums [rows, 32], or sets them
//   first;
//                             ahead(n) is what it may ask for in n steps (Ahead)
//
// x is packed once, a tile's chunk after the other, each as [words / 16][rows][16]: a cache line of
// every row, then the next. Sums are kept in float32 between chunks, and every output adds its
// chunks in order of K: no bit depends on blocks, threads or the other rows of x.
#pragma once

#include "cpu/packed_epilogue.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kLineWords = 16;

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

// n elements of x, at most a line's, as words; the rest is zero.
template <bool pairs, typename T>
AFNEXT_INLINE void pack_line(const T* x, int64_t n, float* words) {
  if constexpr (pairs) {
    if (n >= 2 * kLineWords) {
      std::memcpy(words, x, kLineWords * sizeof(float));
    } else {
      std::memset(words, 0, kLineWords * sizeof(float));
      std::memcpy(words, x, static_cast<size_t>(n) * sizeof(T));
    }
  } else {
    for (int64_t i = 0; i < kLineWords; i += kLanes) {
      const int64_t left = n - i;
      store(words + i, left >= kLanes ? load(x + i)
                       : left > 0     ? load_n(x + i, static_cast<int>(left))
                                      : F32{});
    }
  }
}

// Rows of x for `steps` steps of a panel; rows up to a multiple of kRowUnit are zero.
template <typename Kernel, typename T>
void pack_tile_from(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t step,
                    int64_t steps, float* words) {
  constexpr int64_t kPerWord = Kernel::kPairs ? 2 : 1;
  const int64_t first = step * Kernel::kWords * kPerWord;
  const int64_t lines = ceil_div(steps * Kernel::kWords, kLineWords);
  const int64_t padded = ceil_div(rows, Kernel::kRowUnit) * Kernel::kRowUnit;
  for (int64_t r = 0; r < padded; ++r) {
    const T* x = static_cast<const T*>(a.x) + (row + r) * a.x_stride + first;
    const int64_t count = r < rows ? a.weight.k - first : 0;
    for (int64_t i = 0; i < lines; ++i) {
      const int64_t done = i * kLineWords * kPerWord;
      pack_line<Kernel::kPairs>(x + done, count > done ? count - done : 0,
                                words + (i * padded + r) * kLineWords);
    }
  }
}

template <typename Kernel>
void pack_tile(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t step, int64_t steps,
               float* words) {
  if constexpr (!Kernel::kPairs) {
    if (a.dtype == DType::f32)
      return pack_tile_from<Kernel, float>(a, row, rows, step, steps, words);
  }
  pack_tile_from<Kernel, bf16>(a, row, rows, step, steps, words);
}

// A chunk of a packed weight, and the next one that is wanted.
struct PackedChunk {
  const float *words, *next;
  operator const float*() const { return words; }
  int64_t lines(int64_t steps) const { return 2 * steps; }

  // Asks for what is wanted some steps after `at` from memory.
  AFNEXT_INLINE_METHOD void fetch(const float* at, int64_t) const {
    constexpr int64_t kAhead = 4096 / sizeof(float);  // 1 to 8 KB measured alike from memory
    __builtin_prefetch(at + kAhead);
    __builtin_prefetch(at + kAhead + kPanelColumns / 2);
  }
  // Asks for a cache line of the next chunk.
  AFNEXT_INLINE_METHOD void fetch_next(int64_t line) const {
    __builtin_prefetch(next + line * kLineWords, 0, 2);
  }
};

struct PackedPanels {
  const float* words;
  int64_t steps;
  PackedPanels(const PackedLinearArgs& a, int64_t panel_steps)
      : words(static_cast<const float*>(a.weight.data)), steps(panel_steps) {}
  PackedChunk chunk(int64_t panel, int64_t step, int64_t, int64_t next_panel,
                    int64_t next_step) const {
    return {at(panel, step), at(next_panel, next_step)};
  }
  void complete(int64_t, int64_t, float*) const {}

 private:
  const float* at(int64_t panel, int64_t step) const {
    return words + (panel * steps + step) * kPanelColumns;
  }
};

template <typename Kernel, typename Panels = PackedPanels>
class PackedProduct {
 public:
  // `steps`: of a panel.
  PackedProduct(const PackedLinearArgs& args, int64_t steps)
      : PackedProduct(args, steps, Panels(args, steps)) {}
  PackedProduct(const PackedLinearArgs& args, int64_t steps, const Panels& panels)
      : a_(args),
        panels_(panels),
        steps_(steps),
        chunks_(steps > 0 ? ceil_div(steps, Kernel::kChunk) : 1) {}

  void run() {
    // As many rows at a time as fit the outer cache when packed.
    constexpr int64_t kPackedBytes = 16 << 20;
    const int64_t tiles = kPackedBytes / (chunks_ * kTileWords * 4) + 1;
    for (row_ = 0; row_ < a_.m; row_ += tiles * Kernel::kRows) {
      tiles_ = RowTiles<Kernel>(smaller(a_.m - row_, tiles * Kernel::kRows));
      pack_rows();
      tiles_.count <= kFewTiles ? few_rows() : many_rows();
    }
  }

 private:
  struct Place {
    int64_t panel, chunk;
  };
  static constexpr int64_t kTileWords = Kernel::kRows * Kernel::kChunk * Kernel::kWords;
  static constexpr int64_t kTileSums = Kernel::kRows * kPanelColumns;
  static constexpr int64_t kFewTiles = 64 / Kernel::kRows;
  static constexpr int64_t kResidentBytes = 1 << 20, kLeastTiles = 6;  // of L2, beside a panel

  int64_t chunk_steps(int64_t chunk) const {
    return smaller(steps_ - chunk * Kernel::kChunk, Kernel::kChunk);
  }
  float* words_at(int64_t chunk, int64_t tile) const {
    return words_ + (chunk * tiles_.count + tile) * kTileWords;
  }

  void pack_rows() {
    constexpr int64_t kWordsPerThread = 1 << 15;  // below this, waking a thread costs more
    words_ = scratch<float>(0, static_cast<size_t>(chunks_ * tiles_.count * kTileWords));
    const int64_t work = tiles_.height(0) * smaller(steps_, Kernel::kChunk) * Kernel::kWords;
    parallel_for(
        chunks_ * tiles_.count, kWordsPerThread / (work + 1) + 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t chunk = i / tiles_.count, tile = i % tiles_.count;
            pack_tile<Kernel>(a_, row_ + tiles_.begin(tile), tiles_.height(tile),
                              chunk * Kernel::kChunk, chunk_steps(chunk), words_at(chunk, tile));
          }
        });
  }

  // sums [tiles][kRows, 32], plus the product of those tiles of rows with a chunk of a panel.
  void add(int64_t tile, int64_t tile_end, Place at, Place next, float* sums) const {
    const int64_t steps = chunk_steps(at.chunk);
    const auto panel = panels_.chunk(at.panel, at.chunk * Kernel::kChunk, steps, next.panel,
                                     next.chunk * Kernel::kChunk);
    for (int64_t t = tile; t < tile_end; ++t, sums += kTileSums) {
      const bool last = at.chunk + 1 == chunks_;
      const int64_t row = row_ + tiles_.begin(t), rows = tiles_.height(t);
      Kernel::tile(rows, words_at(at.chunk, t), panel, steps, at.chunk == 0, sums, [&](int64_t n) {
        return ahead(a_, panel, panel.lines(steps), t - tile, tile_end - tile, n, last, row, rows,
                     at.panel);
      });
      if (last) {
        panels_.complete(at.panel, rows, sums);
        finish(a_, row, rows, at.panel, sums);
      }
    }
  }

  // Every panel is read once, from end to end.
  void few_rows() const {
    constexpr int64_t kBytesPerThread = 1 << 17;
    parallel_for(a_.weight.panels(), kBytesPerThread / (steps_ * kStepBytes + 1) + 1,
                 [&](int64_t begin, int64_t end) {
                   [[maybe_unused]] const typename Kernel::Session session;
                   float* sums = scratch<float>(1, static_cast<size_t>(tiles_.count * kTileSums));
                   for (int64_t panel = begin; panel < end; ++panel) {
                     for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
                       const bool last = chunk + 1 == chunks_;
                       add(0, tiles_.count, {panel, chunk},
                           last ? Place{panel + 1, 0} : Place{panel, chunk + 1}, sums);
                     }
                   }
                   finish_streams();
                 });
  }

  void many_rows() const {
    const int64_t fitting = kResidentBytes / (4 * Kernel::kRows * Kernel::kWords * steps_ + 1);
    const bool resident = fitting >= kLeastTiles;
    const int64_t threads = num_threads(), panels = a_.weight.panels();
    // The wider a resident block the better: x comes from memory once for each.
    const int64_t most = smaller(fitting, Kernel::kBlockTiles);
    const int64_t row_blocks = resident ? even_blocks(tiles_.count, most, threads)
                                        : ceil_div(tiles_.count, Kernel::kBlockTiles);
    const int64_t columns =
        column_blocks(row_blocks, panels, resident ? panels : Kernel::kBlockPanels, threads);
    parallel_for(row_blocks * columns, 1, [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const typename Kernel::Session session;
      for (int64_t job = begin; job < end; ++job) {
        const int64_t i = job % row_blocks, j = job / row_blocks;
        const int64_t tile = tiles_.count * i / row_blocks,
                      tile_end = tiles_.count * (i + 1) / row_blocks;
        const int64_t panel = panels * j / columns, panel_end = panels * (j + 1) / columns;
        resident ? resident_block(tile, tile_end, panel, panel_end)
                 : block(tile, tile_end, panel, panel_end);
      }
      finish_streams();
    });
  }

  // All of the rows' depth stays in L2, and the panels come past it one by one.
  void resident_block(int64_t tile, int64_t tile_end, int64_t panel, int64_t panel_end) const {
    float* sums = scratch<float>(1, static_cast<size_t>((tile_end - tile) * kTileSums));
    for (int64_t p = panel; p < panel_end; ++p) {
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        const bool last = chunk + 1 == chunks_;
        add(tile, tile_end, {p, chunk}, last ? Place{p + 1, 0} : Place{p, chunk + 1}, sums);
      }
    }
  }

  // A chunk of the depth at a time: its rows and the sums stay in L2, the chunk of a panel in L1.
  void block(int64_t tile, int64_t tile_end, int64_t panel, int64_t panel_end) const {
    const int64_t tiles = tile_end - tile;
    float* sums = scratch<float>(1, static_cast<size_t>((panel_end - panel) * tiles * kTileSums));
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (int64_t p = panel; p < panel_end; ++p) {
        const bool last = p + 1 == panel_end;
        add(tile, tile_end, {p, chunk}, last ? Place{panel, chunk + 1} : Place{p + 1, chunk},
            sums + (p - panel) * tiles * kTileSums);
      }
    }
  }

  const PackedLinearArgs& a_;
  const Panels panels_;
  int64_t steps_, chunks_, row_ = 0;
  RowTiles<Kernel> tiles_{0};
  float* words_ = nullptr;
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
