#pragma once

#include "afnext/tensor.h"

namespace afnext {

// out = gate * sigmoid(gate) * up, elementwise in float32.
//
//   gate, up: float32 or bfloat16 (on CUDA also float16) [..., D], rows at a uniform distance; out:
//   contiguous.
void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out,
              Stream stream = {});

}  // namespace afnext
