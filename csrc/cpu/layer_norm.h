#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct LayerNormArgs {
  DType dtype;
  int64_t rows, width;  // of out
  const void *x, *weight, *bias;
  int64_t x_stride;       // elements from row to row
  const int64_t* pooled;  // [rows, pool] or null, where row r of out is of row r of x
  int64_t pool;
  float eps;
  void* out;  // contiguous
};

extern KernelTable<LayerNormArgs> layer_norm_kernels;

}  // namespace afnext::cpu
