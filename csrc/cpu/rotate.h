#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct RotateArgs {
  DType dtype;
  int64_t tokens, heads, width, half;  // 2 * half of width channels turn
  int64_t token_stride, head_stride;   // elements, of x
  const void* x;
  const float *times, *inv_freq;  // null with angles
  const float* angles;
  bool interleaved, inverse;
  void* out;  // contiguous
};

extern KernelTable<RotateArgs> rotate_kernels;

}  // namespace afnext::cpu
