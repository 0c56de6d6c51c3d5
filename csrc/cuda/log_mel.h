#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::log_mel on checked arguments; out is aligned to 16 bytes.
void log_mel(const TensorView& samples, const TensorView& cu_samples, const TensorView& cu_frames,
             const TensorView& out, Stream stream);

}  // namespace afnext::cuda
