#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct SiluMulArgs {
  DType dtype;
  int64_t rows, width;
  const void *gate, *up;
  int64_t gate_stride, up_stride;  // elements from row to row
  void* out;                       // contiguous
};

extern KernelTable<SiluMulArgs> silu_mul_kernels;

}  // namespace afnext::cpu
