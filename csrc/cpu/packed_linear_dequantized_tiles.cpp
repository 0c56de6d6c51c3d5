// bfloat16 x and quantised weights on AMX tiles: a thread makes bfloat16 of the chunk of a panel
// that it comes to. Integers of 8 bits are bfloat16 as they are, and meet the scales of their
// columns at the end; those of groups meet theirs before they are rounded.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/amx/tile_kernel.h"
#include "cpu/quantized_panel.h"
#include "cpu/simd/dot_integers.h"
#include "cpu/simd/pairs.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kUnit = 2 * kTileHeight;  // elements of K that a product of tiles takes

int64_t units(const PackedView& weight) { return ceil_div(weight.k, kUnit); }

// A chunk in bfloat16, and where the next one lies as integers.
struct DequantizedChunk {
  const float* words;
  const char* next;
  int64_t bytes;

  operator const float*() const { return words; }
  int64_t lines(int64_t) const { return ceil_div(bytes, kLineBytes); }
  AFNEXT_INLINE_METHOD void fetch_next(int64_t line) const {
    __builtin_prefetch(next + line * kLineBytes, 0, 2);
  }
};

class DequantizedPanels {
 public:
  explicit DequantizedPanels(const PackedView& weight)
      : q_(weight), data_(static_cast<const char*>(weight.data)) {}

  DequantizedChunk chunk(int64_t panel, int64_t step, int64_t steps, int64_t next_panel,
                         int64_t next_step) const {
    float* words = scratch<float>(2, TileKernel::kChunk * kPanelColumns);
    q_.bits == 8 ? dequantize<8>(panel, 2 * step, 2 * steps, words)
                 : dequantize<4>(panel, 2 * step, 2 * steps, words);
    const int64_t groups = ceil_div(2 * TileKernel::kChunk, q_.group);
    return {words, group_of(next_panel, 2 * next_step), groups * q_.group_bytes};
  }

  void complete(int64_t panel, int64_t rows, float* sums) const {
    if (q_.header > 0)
      scale_columns(rows, reinterpret_cast<const float*>(data_ + panel * q_.bytes), sums);
  }

 private:
  const char* group_of(int64_t panel, int64_t element) const {
    return data_ + panel * q_.bytes + q_.header + element / q_.group * q_.group_bytes;
  }

  // `count` elements of K from `first` on, both whole units.
  template <int bits>
  void dequantize(int64_t panel, int64_t first, int64_t count, float* words) const {
    constexpr int64_t kUnitBytes = kUnit * kPanelColumns * bits / 8;
    for (int64_t k = first; k < first + count; k += kUnit, words += kUnit / 2 * kPanelColumns) {
      const char* group = group_of(panel, k);
      const char* unit = group + q_.prefix + k % q_.group / kUnit * kUnitBytes;
      for (int64_t column = 0; column < kPanelColumns; column += kLanes)
        dequantize_unit<bits>(unit + 4 * column, scales_of<bits>(group, column), words + column);
    }
  }

  // A weight is integer * factor + start.
  struct Scales {
    F32 factor, start;
  };
  template <int bits>
  Scales scales_of(const char* group, int64_t column) const {
    const float middle = bits == 8 ? 128.0f : 8.0f;
    if (q_.prefix == 0) return {broadcast(1.0f), broadcast(-middle)};
    const bf16* scales = reinterpret_cast<const bf16*>(group) + column;
    const F32 factor = load(scales);
    const F32 zero = q_.zero_points ? load(scales + kPanelColumns) : broadcast(middle);
    return {factor, -zero * factor};
  }

  // A word has the bytes of a quad of K, or the nibbles of two.
  template <int bits>
  static AFNEXT_INLINE_METHOD void dequantize_unit(const char* unit, const Scales& scales,
                                                   float* words) {
    constexpr int kMask = bits == 8 ? 255 : 15, kWordElements = 32 / bits;
    for (int64_t k = 0; k < kUnit; k += kWordElements, unit += kStepBytes) {
      const I32 word = load_words(unit);
      for (int part = 0; part < 8; part += bits) {
        for (int pair = part; pair < 32; pair += 16, words += kPanelColumns) {
          const I32 low = (word >> pair) & kMask, high = (word >> (pair + 8)) & kMask;
          store(words, round_pairs(value(low, scales), value(high, scales)));
        }
      }
    }
  }
  static AFNEXT_INLINE_METHOD F32 value(I32 integers, const Scales& scales) {
    return fma(__builtin_convertvector(integers, F32), scales.factor, scales.start);
  }

  const QuantizedPanel q_;
  const char* data_;
};

}  // namespace

void packed_linear_dequantized_tiles(const PackedLinearArgs& args) {
  const DequantizedPanels panels(args.weight);
  const int64_t steps = units(args.weight) * kTileHeight;
  PackedProduct<TileKernel, DequantizedPanels>(args, steps, panels).run();
}

AFNEXT_REGISTER(packed_linear_dequantized_tiles, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
