#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::rotate on checked arguments.
void rotate(const TensorView& x, const TensorView* times, const TensorView* inv_freq,
            const TensorView* angles, bool interleaved, bool inverse, const TensorView& out,
            Stream stream);

}  // namespace afnext::cuda
