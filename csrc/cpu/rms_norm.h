#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct RmsNormArgs {
  DType dtype;
  int64_t rows, width;
  const void *x, *residual, *weight;  // residual may be null
  int64_t x_stride, residual_stride;  // elements from row to row
  float eps;
  void *out, *total;  // contiguous; total is null with residual
};

extern KernelTable<RmsNormArgs> rms_norm_kernels;

}  // namespace afnext::cpu
