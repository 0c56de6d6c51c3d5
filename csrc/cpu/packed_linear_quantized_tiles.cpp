// int8 and int4 weights and 8-bit integers of x on AMX tiles: 2 x 2 tiles of sums for what shares
// the scales of x, at most a block where the weight has groups; scales come in vectors.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/amx/tile.h"
#include "cpu/quantized_product.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kTileWords = kTileHeight * kTileBytes / 4;
constexpr int64_t kSteps = kBlock / kTileBytes;  // products of tiles in a block
constexpr int kVectors = kPanelColumns / kLanes;

// Integers of x as [step][2 tiles][16 rows][64 bytes].
struct TileRows {
  static constexpr int kWords = 1;

  static void write(const float* integers, int64_t r, int64_t, int32_t* words) {
    int8_t bytes[1][kBlock];
    split_bytes<1>(integers, bytes);
    for (int64_t step = 0; step < kSteps; ++step) {
      const int64_t row = (2 * step + r / kTileHeight) * kTileHeight + r % kTileHeight;
      std::memcpy(words + row * kTileBytes / 4, bytes[0] + step * kTileBytes, kTileBytes);
    }
  }
};

struct TileKernel {
  using Engine = TileRows;
  static constexpr int64_t kRows = 2 * kTileHeight;
  static constexpr bool kFullTiles = true;

  // The chunk of a panel, in L1, meets all rows of a block; the rows' integers stay in L2, of all
  // of K where they fit, else of the chunk, and then the sums stay there too.
  static void multiply(const Round<TileKernel>& round) {
    const int64_t panels = round.a.weight.panels(), threads = num_threads();
    const int64_t row_bytes = 4 * round.q.blocks * block_words<Engine>(round.q, kRows);
    const bool resident = kBlockTiles * row_bytes <= kResidentBytes;
    const int64_t row_blocks = resident ? even_blocks(round.tiles, kBlockTiles, threads)
                                        : ceil_div(round.tiles, kBlockTiles);
    // With few rows it is the memory that counts, which reads a panel from end to end.
    const int64_t wide = round.tiles <= kFewTiles ? 1 : resident ? panels : kBlockPanels;
    const int64_t columns = column_blocks(row_blocks, panels, wide, threads);
    const int64_t cost = round.q.bytes * (1 + round.tiles / row_blocks / 2) + 1;
    parallel_for(row_blocks * columns, kBytesPerThread / (cost * wide) + 1,
                 [&](int64_t first, int64_t last) {
                   const TileSession session;
                   for (int64_t job = first; job < last; ++job) {
                     const int64_t i = job % row_blocks, j = job / row_blocks;
                     const Block block{round.tiles * i / row_blocks,
                                       round.tiles * (i + 1) / row_blocks, panels * j / columns,
                                       panels * (j + 1) / columns};
                     resident ? by_panels(round, block) : by_chunks(round, block);
                   }
                   finish_streams();
                 });
  }

 private:
  static constexpr int64_t kChunk = 4, kBlockTiles = 16, kBlockPanels = 16, kFewTiles = 64 / kRows;
  static constexpr int64_t kResidentBytes = 1280 << 10;  // of L2, beside a panel
  static constexpr int64_t kTileSums = kRows * kPanelColumns;
  static constexpr int64_t kAhead = kTileHeight * kStepBytes;  // bytes of the weight: a step

  struct Block {
    int64_t tile, tile_end, panel, panel_end;
    int64_t tiles() const { return tile_end - tile; }
    int64_t panels() const { return panel_end - panel; }
  };

  static const char* panel_of(const Round<TileKernel>& round, int64_t panel) {
    return static_cast<const char*>(round.a.weight.data) + panel * round.q.bytes;
  }

  static void by_panels(const Round<TileKernel>& round, const Block& block) {
    const auto size = static_cast<size_t>(block.tiles() * kTileSums);
    float* sums = scratch<float>(1, size);
    for (int64_t p = block.panel; p < block.panel_end; ++p) {
      std::memset(sums, 0, size * sizeof(float));
      for (int64_t b = 0; b < round.q.blocks; b += kChunk) {
        const bool last = b + kChunk >= round.q.blocks;
        add_chunk(round, block, p, b, last ? p + 1 : p, last ? 0 : b + kChunk, sums);
      }
      for (int64_t t = block.tile; t < block.tile_end; ++t)
        finish_tile(round, t, p, sums + (t - block.tile) * kTileSums);
    }
  }

  static void by_chunks(const Round<TileKernel>& round, const Block& block) {
    const auto size = static_cast<size_t>(block.panels() * block.tiles() * kTileSums);
    float* sums = scratch<float>(1, size);
    std::memset(sums, 0, size * sizeof(float));
    const auto sums_of = [&](int64_t p) {
      return sums + (p - block.panel) * block.tiles() * kTileSums;
    };
    for (int64_t b = 0; b < round.q.blocks; b += kChunk) {
      for (int64_t p = block.panel; p < block.panel_end; ++p) {
        const bool last = p + 1 == block.panel_end;
        add_chunk(round, block, p, b, last ? block.panel : p + 1, last ? b + kChunk : b,
                  sums_of(p));
      }
    }
    for (int64_t t = block.tile; t < block.tile_end; ++t) {
      for (int64_t p = block.panel; p < block.panel_end; ++p)
        finish_tile(round, t, p, sums_of(p) + (t - block.tile) * kTileSums);
    }
  }

  // sums [tiles][kRows, 32] of a panel, plus the products with its blocks from `first` on; asks for
  // the blocks that come next.
  static void add_chunk(const Round<TileKernel>& round, const Block& block, int64_t panel,
                        int64_t first, int64_t next_panel, int64_t next_first, float* sums) {
    const QuantizedPanel& q = round.q;
    const int64_t count = smaller(kChunk, q.blocks - first);
    const auto groups_of = [&](int64_t p, int64_t b) {
      return panel_of(round, p) + q.header + b * q.group_bytes;
    };
    const char* groups = groups_of(panel, first);
    const char* bytes = q.bits == 4 ? split_nibbles(q, groups, count) : nullptr;
    const NextBlocks next{groups_of(next_panel, next_first)};
    const bool last = first + count == q.blocks;
    const bool from_memory = bytes == nullptr && block.panels() == 1;
    for (int64_t t = block.tile; t < block.tile_end; ++t, sums += kTileSums) {
      auto coming =
          ahead(round.a, next, count * q.group_bytes / kTileBytes, t - block.tile, block.tiles(),
                count, last, round.row + round.begin(t), round.height(t), panel);
      add_blocks(round.height(t), q, groups, bytes,
                 round.words_of(t) + first * block_words<Engine>(q, kRows), count,
                 from_memory && t == block.tile, coming, sums);
    }
  }

  static void finish_tile(const Round<TileKernel>& round, int64_t t, int64_t panel, float* sums) {
    if (round.q.header > 0)
      scale_columns(round.height(t), reinterpret_cast<const float*>(panel_of(round, panel)), sums);
    finish(round.a, round.row + round.begin(t), round.height(t), panel, sums);
  }

  // Bytes of int4 weights one by one: [block][32 quads][128 bytes]; int8 ones lie so already.
  static const char* split_nibbles(const QuantizedPanel& q, const char* group, int64_t blocks) {
    char* bytes = scratch<char>(2, static_cast<size_t>(kChunk * kQuads * kStepBytes));
    char* out = bytes;
    for (int64_t b = 0; b < blocks; ++b, group += q.group_bytes) {
      const char* step = group + q.prefix;
      for (int64_t s = 0; s < q.steps; ++s, step += kStepBytes, out += 2 * kStepBytes) {
        for (int64_t i = 0; i < kStepBytes; i += 4 * kLanes) {
          __builtin_prefetch(step + i + kAhead);
          const I32 pairs = load_words(step + i);
          const I32 low = pairs & 0x0f0f0f0f, high = (pairs >> 4) & 0x0f0f0f0f;
          std::memcpy(out + i, &low, sizeof(low));
          std::memcpy(out + kStepBytes + i, &high, sizeof(high));
        }
      }
    }
    return bytes;
  }

  struct NextBlocks {
    const char* data;
    AFNEXT_INLINE_METHOD void fetch_next(int64_t line) const {
      __builtin_prefetch(data + line * kTileBytes, 0, 2);
    }
  };

  // The products of a block begin while vectors scale those before. Blocks that share the scales of
  // x are summed in tiles.
  static void add_blocks(int64_t rows, const QuantizedPanel& q, const char* groups,
                         const char* bytes, const int32_t* x, int64_t blocks, bool from_memory,
                         Ahead<NextBlocks>& coming, float* sums) {
    alignas(64) int32_t products[2][2 * kTileHeight * kPanelColumns];
    const int64_t x_words = block_words<Engine>(q, kRows);
    const int64_t shared = q.scale_blocks(8);
    const auto add_shared = [&](int64_t first, int64_t end, const int32_t* from) {
      const Rows parts(q, x + first * x_words, x_words, end - first);
      add(rows, q, groups + first * q.group_bytes, parts, from, sums);
    };
    int64_t last = 0, turn = 0;
    for (int64_t first = 0, end = 0; first < blocks; last = first, first = end, turn ^= 1) {
      end = smaller(first + shared, blocks);
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
      for (int64_t b = first; b < end; ++b) {
        coming.step();
        multiply_block(x + b * x_words,
                       bytes != nullptr ? bytes + b * kQuads * kStepBytes
                                        : groups + b * q.group_bytes + q.prefix,
                       from_memory);
      }
      store_products(products[turn]);
      if (first > 0) add_shared(last, first, products[turn ^ 1]);
    }
    add_shared(last, blocks, products[turn ^ 1]);
  }

  // Sums are tiles 0 to 3, those of a tile of x side by side; x has 4 and 5, the panel 6 and 7.
  static AFNEXT_INLINE_METHOD void multiply_block(const int32_t* x, const char* weight,
                                                  bool from_memory) {
    for (int64_t step = 0; step < kSteps; ++step, x += 2 * kTileWords) {
      for (int64_t i = 0; from_memory && i < kAhead; i += 64)
        __builtin_prefetch(weight + kAhead + i);
      tile_load<6>(weight, kStepBytes), tile_load<7>(weight + kTileBytes, kStepBytes);
      tile_stream_load<4>(x, kTileBytes);
      tile_dot_i8_u8<0, 4, 6>(), tile_dot_i8_u8<1, 4, 7>();
      tile_stream_load<5>(x + kTileWords, kTileBytes);
      tile_dot_i8_u8<2, 5, 6>(), tile_dot_i8_u8<3, 5, 7>();
      weight += kTileHeight * kStepBytes;
    }
  }
  static AFNEXT_INLINE_METHOD void store_products(int32_t* products) {
    constexpr int64_t kRowBytes = 4 * kPanelColumns, kHalf = kTileHeight * kPanelColumns;
    tile_store<0>(products, kRowBytes), tile_store<1>(products + kPanelColumns / 2, kRowBytes);
    tile_store<2>(products + kHalf, kRowBytes);
    tile_store<3>(products + kHalf + kPanelColumns / 2, kRowBytes);
  }

  // What goes with the integers of x in `blocks` blocks that share its scales.
  struct Rows {
    const float *scales, *sums;
    int32_t starts[kRows];

    Rows(const QuantizedPanel& q, const int32_t* x, int64_t x_words, int64_t blocks)
        : scales(reinterpret_cast<const float*>(x + kSteps * 2 * kTileWords)),
          sums(scales + (1 + q.groups) * kRows) {
      for (int64_t r = 0; r < kRows; r += kLanes) {
        const int32_t* start = reinterpret_cast<const int32_t*>(scales) + kRows + r;
        I32 total = load_words(start);
        for (int64_t b = 1; b < blocks; ++b) total += load_words(start + b * x_words);
        std::memcpy(starts + r, &total, sizeof(total));
      }
    }
  };

  static void add(int64_t rows, const QuantizedPanel& q, const char* scales, const Rows& x,
                  const int32_t* products, float* sums) {
    if (q.header > 0) return add_scaled<false, false>(rows, scales, x, products, sums);
    q.zero_points ? add_scaled<true, true>(rows, scales, x, products, sums)
                  : add_scaled<true, false>(rows, scales, x, products, sums);
  }

  // Integers meet their scales: one for each row, and one for each column where the panel does not
  // keep those for the end.
  template <bool scaled, bool shifted>
  static void add_scaled(int64_t rows, const char* scales, const Rows& x, const int32_t* products,
                         float* sums) {
    F32 scale[kVectors], zero[kVectors];
    for (int c = 0; c < kVectors; ++c) {
      const bf16* halves = reinterpret_cast<const bf16*>(scales) + c * kLanes;
      if constexpr (scaled) scale[c] = load(halves);
      if constexpr (shifted) zero[c] = load(halves + kPanelColumns);
    }
    for (int64_t r = 0; r < rows; ++r, products += kPanelColumns, sums += kPanelColumns) {
      const F32 x_scale = broadcast(x.scales[r]);
      const I32 start = broadcast_word(x.starts[r]);
      for (int c = 0; c < kVectors; ++c) {
        F32 value = __builtin_convertvector(load_words(products + c * kLanes) + start, F32);
        if constexpr (shifted) value -= zero[c] * x.sums[r];
        if constexpr (scaled) value *= scale[c];
        store(sums + c * kLanes, fma(value, x_scale, load(sums + c * kLanes)));
      }
    }
  }
};

}  // namespace

void packed_linear_quantized_tiles(const PackedLinearArgs& args) {
  quantized_product<TileKernel>(args);
}

AFNEXT_REGISTER(packed_linear_quantized_tiles, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
