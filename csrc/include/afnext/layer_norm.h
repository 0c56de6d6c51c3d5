#pragma once

#include "afnext/tensor.h"

namespace afnext {

// out = weight * (t - mean(t)) / sqrt(var(t) + eps) + bias over the last axis, in float32 and
// rounded once. t is a row of x, or with `pooled` the mean of the rows of x that one row of it
// names.
//
//   x: float32 or bfloat16 (CUDA: float16 too) [..., D], rows at a uniform distance; weight, bias:
//   [D] of x's dtype; pooled: int64 [n, P] on x's device, contiguous, or null; out: contiguous, of
//   x's shape, or [n, D].
//
// A row that does not exist is refused on the CPU; on CUDA, where nobody looks before the kernel
// does, it makes its row of out NaN.
void layer_norm(const TensorView& x, const TensorView& weight, const TensorView& bias, double eps,
                const TensorView* pooled, const TensorView& out, Stream stream = {});

}  // namespace afnext
