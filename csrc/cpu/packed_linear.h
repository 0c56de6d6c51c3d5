#pragma once

#include "afnext/packed_linear.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct PackedLinearArgs {
  DType dtype;  // of x, bias, residual and out
  int64_t m;
  PackedView weight;
  const void* x;
  int64_t x_stride;             // elements from row to row
  const void *bias, *residual;  // may be null; residual may be out
  Activation activation;
  void* out;  // contiguous [m, weight.columns()], as is residual
};

// One table a family of formats; the dense one serves float32 and bfloat16 weights.
extern KernelTable<PackedLinearArgs> packed_linear_kernels;
extern KernelTable<PackedLinearArgs> packed_linear_quantized_kernels;  // int8 and int4

// bfloat16 x and weights on AMX tiles; emulated at the level baseline, for tests.
extern KernelTable<PackedLinearArgs> packed_linear_tiles_kernels;
// int8 and int4 weights on AMX tiles; emulated likewise: of integers, for 8-bit
// x and groups of at least a tile's depth ..
extern KernelTable<PackedLinearArgs> packed_linear_quantized_tiles_kernels;
// .. or of bfloat16, for x of that type.
extern KernelTable<PackedLinearArgs> packed_linear_dequantized_tiles_kernels;

}  // namespace afnext::cpu
