// The panels of afnext/pack.h for quantised weights.
//
// Layout "panels32-v1", the same for every instruction set: a panel holds 32 output columns and is
// cut along K into blocks of 128 (blocks also share scales of x), blocks into groups. A group is
//
//   scales   bfloat16 [32]
//   zeros    bfloat16 [32], with zero points only
//   steps of 128 bytes, [32] columns of 4 bytes:
//     int8   a byte is value + 128 of 4 neighbours in K
//     int4   the low nibbles are 4 neighbours in K, the high nibbles the 4 after them
//
// "int8" has one float32 [32] of scales before a panel's blocks, and a block is its group. A step
// is two registers of AVX-512 or a row each of two AMX tiles, and every kernel reads forward.
// Columns that are missing from the last panel have scale 0; K is padded to whole blocks with
// weights of zero.
#pragma once

#include "afnext/pack.h"
#include "afnext/quantize.h"

namespace afnext {

// Fills `view` from a name such as "int4-g32", "int4-g128-zp" (with zero points), "fp8",
// "int8:int8" (x is rounded to 8 bits a block instead of 16). False when it is no name of a
// quantised format.
bool parse_quantized(std::string_view name, PackedView& view);

int64_t quantized_bytes(const PackedView& view);

// Fills `view.data` from canonical tensors.
void pack_quantized(const QuantizedTensors& tensors, const PackedView& view, Stream stream = {});

// The float32 [n, k] that the integers stand for.
void unpack_quantized(const PackedView& view, const TensorView& out);

}  // namespace afnext
