#pragma once

#include "afnext/tensor.h"

namespace afnext {

// out = weight * (t / sqrt(mean(t**2) + eps)) over the last axis; t = x, or x + residual, which is
// then written to `total`. The norm is rounded to x's dtype before it meets the weight.
//
//   x, residual, total, out: float32 or bfloat16 (CUDA: float16 too) [..., D]; weight: [D] of the
//   same dtype. residual and total are both null or both given.
void rms_norm(const TensorView& x, const TensorView* residual, const TensorView& weight, double eps,
              const TensorView& out, const TensorView* total, Stream stream = {});

}  // namespace afnext
