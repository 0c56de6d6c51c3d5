#pragma once

#include "afnext/tensor.h"

namespace afnext {

// What the machine can do at best, for benchmarks to compare with.

// Reads all of a contiguous buffer with all threads; returns a value that depends on all of it.
uint64_t peak_read(const TensorView& buffer);

// Multiply-adds on registers alone, in all threads: `steps` rounds in each, on operands taken from
// `operands` (float32 [64]). `dtype` is f32, bf16 or i8: multiplied by the best instruction of the
// active level, accumulated in 32 bits. Returns the number of operations, a multiply-add being two.
double peak_arithmetic(DType dtype, const TensorView& operands, int64_t steps);

}  // namespace afnext
