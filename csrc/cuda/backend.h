// Whether this build has CUDA kernels, and which tensors they serve.
//
// An op's column here: csrc/cuda/<op>.h declares `cuda::<op>` on arguments that csrc/ops/<op>.cpp
// has checked, csrc/cuda/<op>.cu holds its kernels and launches them.
#pragma once

#include "afnext/tensor.h"

namespace afnext {

#if defined(AFNEXT_HAS_CUDA)
constexpr bool kCuda = true;
#else
constexpr bool kCuda = false;
#endif

inline bool on_cuda(const TensorView& t) { return t.device == DeviceType::cuda; }

}  // namespace afnext
