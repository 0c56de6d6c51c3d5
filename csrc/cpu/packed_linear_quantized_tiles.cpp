// int8 and int4 weights on AMX tiles: 2 x 2 tiles of sums for a block of 128 elements of K, then
// the scales in vectors. The two tiles of x are 32 rows of 8-bit integers, or the high and the low
// bytes of 16 rows of 16-bit ones.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/amx/tile.h"
#include "cpu/quantized_product.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kTileWords = kTileHeight * kTileBytes / 4;
constexpr int64_t kSteps = kBlock / kTileBytes;  // products of tiles in a block

// Integers of x as [step][2 tiles][16 rows][64 bytes].
template <int planes>
struct TileRows {
  static constexpr int kWords = planes;

  static void write(const float* integers, int64_t r, int64_t, int32_t* words) {
    int8_t bytes[planes][kBlock];
    split_bytes<planes>(integers, bytes);
    for (int64_t step = 0; step < kSteps; ++step) {
      for (int64_t p = 0; p < planes; ++p) {
        const int64_t tile = 2 * step + (planes == 2 ? p : r / kTileHeight);
        std::memcpy(words + tile * kTileWords + r % kTileHeight * kTileBytes / 4,
                    bytes[p] + step * kTileBytes, kTileBytes);
      }
    }
  }
};

template <int planes>
struct TileKernel {
  using Engine = TileRows<planes>;
  static constexpr int64_t kRows = 2 * kTileHeight / planes;
  static constexpr bool kFullTiles = true;
  using Session = TileSession;

  // Bytes of int4 weights one by one: [block][32 quads][128 bytes]; int8 ones lie so already.
  static const char* prepare(const QuantizedPanel& q, const char* panel) {
    if (q.bits == 8) return nullptr;
    char* bytes = scratch<char>(1, static_cast<size_t>(q.blocks * kQuads * kStepBytes));
    const char* group = panel + q.header + q.prefix;
    char* out = bytes;
    for (int64_t b = 0; b < q.blocks; ++b, group += q.group_bytes) {
      for (int64_t s = 0; s < q.steps; ++s, out += 2 * kStepBytes) {
        for (int64_t i = 0; i < kStepBytes; i += 4 * kLanes) {
          const I32 pairs = load_words(group + s * kStepBytes + i);
          const I32 low = pairs & 0x0f0f0f0f, high = (pairs >> 4) & 0x0f0f0f0f;
          std::memcpy(out + i, &low, sizeof(low));
          std::memcpy(out + kStepBytes + i, &high, sizeof(high));
        }
      }
    }
    return bytes;
  }

  static void tile(int64_t rows, const QuantizedPanel& q, const char* panel, const char* prepared,
                   const int32_t* x, float* sums) {
    std::memset(sums, 0, static_cast<size_t>(rows * kPanelColumns) * sizeof(float));
    const char* group = panel + q.header;
    for (int64_t b = 0; b < q.blocks; ++b, group += q.group_bytes) {
      alignas(64) int32_t products[2 * kTileHeight * kPanelColumns];
      multiply(x, prepared != nullptr ? prepared + b * kQuads * kStepBytes : group + q.prefix,
               products);
      const float* x_scales = reinterpret_cast<const float*>(x + kSteps * 2 * kTileWords);
      add(rows, q, q.header > 0 ? panel : group, x_scales, products, sums);
      x += block_words<Engine>(q, kRows);
    }
  }

 private:
  // Sums are tiles 0 to 3, those of a tile of x side by side; x has 4 and 5, the panel 6 and 7.
  static void multiply(const int32_t* x, const char* weight, int32_t* products) {
    constexpr int64_t kRowBytes = 4 * kPanelColumns, kHalf = kTileHeight * kPanelColumns;
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (int64_t step = 0; step < kSteps; ++step, x += 2 * kTileWords) {
      tile_load<6>(weight, kStepBytes), tile_load<7>(weight + kTileBytes, kStepBytes);
      tile_stream_load<4>(x, kTileBytes);
      tile_dot_i8_u8<0, 4, 6>(), tile_dot_i8_u8<1, 4, 7>();
      tile_stream_load<5>(x + kTileWords, kTileBytes);
      tile_dot_i8_u8<2, 5, 6>(), tile_dot_i8_u8<3, 5, 7>();
      weight += kTileHeight * kStepBytes;
    }
    tile_store<0>(products, kRowBytes), tile_store<1>(products + kPanelColumns / 2, kRowBytes);
    tile_store<2>(products + kHalf, kRowBytes);
    tile_store<3>(products + kHalf + kPanelColumns / 2, kRowBytes);
  }

  // Integers of a block meet their scales.
  static void add(int64_t rows, const QuantizedPanel& q, const char* scales, const float* x_scales,
                  const int32_t* products, float* sums) {
    const int32_t* starts = reinterpret_cast<const int32_t*>(x_scales + kRows);
    const float* x_sums = reinterpret_cast<const float*>(starts + kRows);
    const bf16* halves = reinterpret_cast<const bf16*>(scales);
    for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
      const F32 scale = q.header > 0 ? load(reinterpret_cast<const float*>(scales) + column)
                                     : load(halves + column);
      const F32 zero = q.zero_points ? load(halves + kPanelColumns + column) : F32{};
      for (int64_t r = 0; r < rows; ++r) {
        const int32_t* product = products + r * kPanelColumns + column;
        I32 total = load_words(product) + starts[r];
        if constexpr (planes == 2) {
          total = (load_words(product) << 8) + load_words(product + kTileHeight * kPanelColumns) +
                  starts[r];
        }
        const F32 value = __builtin_convertvector(total, F32) - zero * x_sums[r];
        float* kept = sums + r * kPanelColumns + column;
        store(kept, fma(value * scale, broadcast(x_scales[r]), load(kept)));
      }
    }
  }
};

}  // namespace

void packed_linear_quantized_tiles(const PackedLinearArgs& args) {
  args.weight.activation_bits == 8 ? quantized_product<TileKernel<1>>(args)
                                   : quantized_product<TileKernel<2>>(args);
}

AFNEXT_REGISTER(packed_linear_quantized_tiles, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
