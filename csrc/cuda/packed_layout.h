// Layout "mma-v2" of packed weights: what a warp loads in 16-byte pieces is, after a few bit
// operations, the A operand of mma.m16n8k16. Rows of the weight take the 16 rows of a product, so
// that rows of x take its 8 columns and a call with few rows of x wastes little.
//
// A tile holds 16 rows (of a gate_up weight 8 gate rows and then the 8 up rows that belong to them,
// which meet in one lane) and is cut along K into steps of 128, four blocks of 32. Tiles lie one
// after the other, so whoever has some of them reads one line of memory:
//
//   values   [tile][step][piece][lane 32][16 bytes]
//   scales   float32 [tile][16]                               a scale for each row (int8, fp8)
//            bfloat16 [tile][step][row 8][group][row + 8]     for each group of 128 or 32 along K
//            {bfloat16, uint16 zero}, likewise                with zero points
//
// Lane 4 r + c holds rows r and r + 8. The order of K within a block is free as long as x goes by
// the same one, so lane c takes elements 8 c to 8 c + 7: one 16-byte load of a row of x is then its
// part of the B operands of the block's two products. Register i, half h, of the A operand of
// product p is
//
//   row r + 8 (i % 2), element 8 c + 4 p + 2 (i / 2) + h
//
// and stands in word w of a piece:
//
//                pieces   piece           word
//   bf16, f16    8        2 * block + p   register w, half h
//   int8, fp8    4        block           p = w / 2
//                                         byte b: register 2 (w % 2) + b % 2, half b / 2
//   int4         2        block / 2       block % 2 = w / 2, p = w % 2
//                                         nibble b: register b % 4, half b / 4
//
// so that masking a word, or the word shifted, leaves both halves of a register in place. Missing
// rows and K are zeros (int4 without zero points: 8).
#pragma once

#include "afnext/pack.h"

namespace afnext::cuda {

constexpr int kTileRows = 16;
constexpr int kBlockDepth = 32;
constexpr int kStepBlocks = 4;
constexpr int kStepDepth = kStepBlocks * kBlockDepth;

// The parts of a packed weight.
struct MmaLayout {
  explicit MmaLayout(const PackedView& view)
      : width(view.gate_up ? kTileRows / 2 : kTileRows),
        step_bytes(dense(view.format)                  ? 4096
                   : view.format == WeightFormat::int4 ? 1024
                                                       : 2048),
        tiles((view.columns() + width - 1) / width),
        steps((view.k + kStepDepth - 1) / kStepDepth),
        step_groups(view.group == 0 ? 0 : kStepDepth / view.group) {
    if (view.group != 0) {
      scale_bytes = steps * step_groups * kTileRows * (view.zero_points ? 4 : 2);
    } else if (!dense(view.format)) {
      scale_bytes = kTileRows * 4;
    }
  }
  static bool dense(WeightFormat format) {
    return format == WeightFormat::bf16 || format == WeightFormat::f16;
  }
  int64_t value_bytes() const { return tiles * steps * step_bytes; }
  int64_t bytes() const { return value_bytes() + tiles * scale_bytes; }

  int64_t width;  // columns of the output that a tile serves
  int64_t step_bytes, tiles, steps;
  int64_t step_groups;      // of K that have a scale each
  int64_t scale_bytes = 0;  // of a tile
};

}  // namespace afnext::cuda
