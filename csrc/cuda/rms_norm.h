#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::rms_norm on checked arguments.
void rms_norm(const TensorView& x, const TensorView* residual, const TensorView& weight, double eps,
              const TensorView& out, const TensorView* total, Stream stream);

}  // namespace afnext::cuda
