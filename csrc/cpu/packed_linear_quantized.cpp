// Products with int8 and int4 weights, all in integers: x becomes integers too, of 16 bits a block
// (whose rounding is far below that of bf16) or of 8 where the weight asks for it. The sums of a
// group meet its scales in float32.
#include "cpu/quantized_product.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kPrefetchBytes = 4096;  // 1 to 8 KB measured alike from memory

// Rows of x in a tile of one or two registers of columns: as many as leave some for the weight.
template <typename Engine, int bits, int columns>
constexpr int kTileRows = (kLanes == 16 ? (bits == 8 ? 28 : 24) : 8) / (columns * Engine::kPlanes);
// Two save loads of x; with one a panel is read once for twice the rows, which counts where x has
// two planes and tiles are low.
template <typename Engine, int bits>
constexpr int kMostRows = kTileRows<Engine, bits, 3 - Engine::kPlanes>;

// Where the integers of a group meet their scales.
struct Fold {
  const char* scales;  // and zeros
  const float *x_scales, *x_sums;
  int64_t column;
  float* sums;

  template <bool scaled, bool shifted, int R, int P, int C>
  AFNEXT_INLINE_METHOD void add(const I32 (&acc)[R][P][C]) const {
    F32 scale[C], zero[C];
    for (int c = 0; c < C; ++c) {
      const bf16* halves = reinterpret_cast<const bf16*>(scales) + column + c * kLanes;
      if constexpr (scaled) scale[c] = load(halves);
      if constexpr (shifted) zero[c] = load(halves + kPanelColumns);
    }
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const F32 x_scale = broadcast(x_scales[r]);
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) {
        I32 total = acc[r][P - 1][c];
        if constexpr (P == 2) total += acc[r][0][c] << 8;
        F32 value = __builtin_convertvector(total, F32);
        if constexpr (shifted) value -= zero[c] * x_sums[r];
        if constexpr (scaled) value *= scale[c];
        float* kept = sums + r * kPanelColumns + column + c * kLanes;
        store(kept, fma(value, x_scale, load(kept)));
      }
    }
  }
};

// R rows of x against C * kLanes columns of a group; scales is null where the panel has but one for
// each column.
template <typename Engine, int bits, int R, int C>
AFNEXT_INLINE void group_tile(const QuantizedPanel& q, const char* scales, const char* group,
                              int64_t column, const int32_t* words, const float* x_scales,
                              const int32_t* starts, const float* x_sums, float* sums) {
  I32 acc[R][Engine::kPlanes][C] = {};
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) acc[r][Engine::kPlanes - 1][c] = broadcast_word(starts[r]);
  }
  const char* step = group + q.prefix + 4 * column;
  for (int64_t s = 0; s < q.steps; ++s, step += kStepBytes) {
    __builtin_prefetch(step + kPrefetchBytes);
    if constexpr (C * kLanes == kPanelColumns) __builtin_prefetch(step + kPrefetchBytes + 64);
    I32 weight[C];
    for (int c = 0; c < C; ++c) weight[c] = load_words(step + 4 * c * kLanes);
    if constexpr (bits == 8) {
      Engine::step(words, weight, acc);
      words += R * Engine::kWords;
    } else {
      I32 low[C], high[C];
      for (int c = 0; c < C; ++c) {
        low[c] = weight[c] & 0x0f0f0f0f;
        high[c] = (weight[c] >> 4) & 0x0f0f0f0f;
      }
      Engine::step(words, low, acc);
      Engine::step(words + R * Engine::kWords, high, acc);
      words += 2 * R * Engine::kWords;
    }
  }
  const Fold fold{scales, x_scales, x_sums, column, sums};
  if constexpr (bits == 8) {
    scales != nullptr ? fold.add<true, false>(acc) : fold.add<false, false>(acc);
  } else {
    q.zero_points ? fold.add<true, true>(acc) : fold.add<true, false>(acc);
  }
}

// sums [R, 32] of a tile of x against a panel.
template <typename Engine, int bits, int R>
__attribute__((noinline)) void tile(const QuantizedPanel& q, const char* panel, const int32_t* x,
                                    float* sums) {
  constexpr int kColumns = R <= kTileRows<Engine, bits, 2> ? 2 : 1;
  std::memset(sums, 0, R * kPanelColumns * sizeof(float));
  const char* group = panel + q.header;
  for (int64_t b = 0; b < q.blocks; ++b, x += block_words<Engine>(q, R)) {
    const float* x_scales = reinterpret_cast<const float*>(x + kQuads * Engine::kWords * R);
    const int32_t* starts = reinterpret_cast<const int32_t*>(x_scales + R);
    const float* x_sums = reinterpret_cast<const float*>(starts + q.groups * R);
    for (int64_t g = 0; g < q.groups; ++g, group += q.group_bytes) {
      for (int64_t column = 0; column < kPanelColumns; column += kColumns * kLanes) {
        group_tile<Engine, bits, R, kColumns>(q, q.header > 0 ? nullptr : group, group, column,
                                              x + g * q.group / 4 * R * Engine::kWords, x_scales,
                                              starts + g * R, x_sums + g * R, sums);
      }
    }
  }
  if (q.header > 0) scale_columns(R, reinterpret_cast<const float*>(panel), sums);
}

// tile<rows>, for rows known at run time.
template <typename Engine, int bits, int R = kMostRows<Engine, bits>>
void tile_of(int64_t rows, const QuantizedPanel& q, const char* panel, const int32_t* x,
             float* sums) {
  if constexpr (R > 1) {
    if (rows != R) return tile_of<Engine, bits, R - 1>(rows, q, panel, x, sums);
  }
  tile<Engine, bits, R>(q, panel, x, sums);
}

template <typename E, int bits>
struct VectorKernel {
  using Engine = E;
  static constexpr int64_t kRows = kMostRows<Engine, bits>;
  static constexpr bool kFullTiles = false;
  using Session = NoSession;

  static const char* prepare(const QuantizedPanel&, const char* panel) { return panel; }
  static void tile(int64_t rows, const QuantizedPanel& q, const char* panel, const char*,
                   const int32_t* x, float* sums) {
    tile_of<Engine, bits>(rows, q, panel, x, sums);
  }
};

template <typename Engine>
void product_of(const PackedLinearArgs& a) {
  a.weight.format == WeightFormat::int8 ? quantized_product<VectorKernel<Engine, 8>>(a)
                                        : quantized_product<VectorKernel<Engine, 4>>(a);
}

template <bool has_byte_products>
void product_by_engine(const PackedLinearArgs& a) {
  if constexpr (has_byte_products) {
    a.weight.activation_bits == 8 ? product_of<Bytes<1>>(a) : product_of<Bytes<2>>(a);
  } else {
    product_of<Pairs>(a);
  }
}

}  // namespace

void packed_linear_quantized(const PackedLinearArgs& args) {
  product_by_engine<kHasByteProducts>(args);
}

AFNEXT_REGISTER(packed_linear_quantized, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
