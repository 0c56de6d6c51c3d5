#pragma once

#include "afnext/tensor.h"

namespace afnext {

// out = x @ weight.T + bias, accumulated in float32 and rounded once.
//
//   x: float32 or bfloat16 [..., K], rows at a uniform distance; weight: [N, K], rows at any
//   distance; bias: [N] or null; out: contiguous [..., N]. K = 0 leaves the bias alone.
void linear(const TensorView& x, const TensorView& weight, const TensorView* bias,
            const TensorView& out);
// The same by the kernel for AMX tiles (bfloat16), with the tiles emulated in plain C++ where the
// machine has none: for tests.
void linear_tiles(const TensorView& x, const TensorView& weight, const TensorView* bias,
                  const TensorView& out);

}  // namespace afnext
