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

// Up to here reading the weight in place is faster than packing it (measured from 384 to 18,944).
constexpr int64_t kLinearFewRows = 16;

extern KernelTable<LinearArgs> linear_kernels;
extern KernelTable<LinearArgs> linear_tiles_kernels;  // bfloat16 on AMX tiles

}  // namespace afnext::cpu
