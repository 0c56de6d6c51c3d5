// Layout "mma-v1" of packed weights: what a warp loads in 16-byte pieces is, after a few bit
// operations, the A operand of mma.m16n8k16. Rows of the weight take the 16 rows of a product, so
// that rows of x take its 8 columns and a call with few rows of x wastes little.
//
// A panel holds 64 rows (of a gate_up weight 32 gate rows and the 32 up rows that belong to them)
// and is cut along K into blocks:
//
//   values   [panel][block of 32 along K][piece][lane 32][16 bytes]
//   scales   float32 [panel][64]                           a scale for each row (int8, fp8)
//            bfloat16 [panel][group][64]                   for each group of 128 or 32 along K
//            {bfloat16, uint16 zero} [panel][group][64]    with zero points
//
// Lane 4 r + c holds rows r and r + 8 of tiles of 16. The order of K within a block is free as long
// as x goes by the same one, so lane c takes elements 8 c to 8 c + 7: one 16-byte load of a row of
// x is then its part of the B operands of the block's two products. Register i, half h, of the A
// operand of product p is
//
//   row r + 8 (i % 2), element 8 c + 4 p + 2 (i / 2) + h
//
// and stands in word w of a piece:
//
//                pieces   piece          word
//   bf16, f16    8        2 * tile + p   register w, half h
//   int8, fp8    4        tile           p = w / 2
//                                        byte b: register 2 (w % 2) + b % 2, half b / 2
//   int4         2        tile / 2       tile % 2 = w / 2, p = w % 2
//                                        nibble b: register b % 4, half b / 4
//
// so that masking a word, or the word shifted, leaves both halves of a register in place. Scales of
// a group go as [r][tile][row + 8]. Missing rows and K are zeros (int4 without zero points: 8).
#pragma once

#include "afnext/pack.h"

namespace afnext::cuda {

constexpr int kPanelRows = 64;
constexpr int kBlockDepth = 32;
constexpr int kTileRows = 16;
constexpr int kTiles = kPanelRows / kTileRows;

// The parts of a packed weight.
struct MmaLayout {
  explicit MmaLayout(const PackedView& view)
      : width(view.gate_up ? kPanelRows / 2 : kPanelRows),
        block_bytes(dense(view.format)                  ? 4096
                    : view.format == WeightFormat::int4 ? 1024
                                                        : 2048),
        panels((view.columns() + width - 1) / width),
        blocks((view.k + kBlockDepth - 1) / kBlockDepth),
        groups(view.group == 0 ? 0 : (blocks * kBlockDepth + view.group - 1) / view.group) {
    if (view.group != 0) {
      scale_bytes = groups * kPanelRows * (view.zero_points ? 4 : 2);
    } else if (!dense(view.format)) {
      scale_bytes = kPanelRows * 4;
    }
  }
  static bool dense(WeightFormat format) {
    return format == WeightFormat::bf16 || format == WeightFormat::f16;
  }
  int64_t value_bytes() const { return panels * blocks * block_bytes; }
  int64_t bytes() const { return value_bytes() + panels * scale_bytes; }

  int64_t width;  // columns of the output that a panel serves
  int64_t block_bytes, panels, blocks, groups;
  int64_t scale_bytes = 0;  // of a panel
};

}  // namespace afnext::cuda
