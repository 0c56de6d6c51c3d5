// Whether rows may be rounded to 8 bits: where outliers make that costly, they stay at 16.
#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct ActivationBitsArgs {
  DType dtype;
  int64_t rows, width;
  const void* x;
  int64_t x_stride;  // elements from row to row
  int64_t shared;    // neighbours in a row that have one scale
  int* bits;         // out: 8 or 16
};

// 8 where rounding x so, with a scale for neighbours, is expected to be off by at most 1 % of it
// (root of the squares over all of x), else 16. NaN and infinity stay at 16 bits.
extern KernelTable<ActivationBitsArgs> activation_bits_kernels;

}  // namespace afnext::cpu
