#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct LinearArgs {
  DType dtype;
  int64_t m, n, k;
  const void *x, *weight, *bias;    // bias may be null
  int64_t x_stride, weight_stride;  // elements from row to row
  void* out;                        // contiguous [m, n]
};

extern KernelTable<LinearArgs> linear_kernels;

}  // namespace afnext::cpu
