#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::silu_mul on checked arguments.
void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out, Stream stream);

}  // namespace afnext::cuda
