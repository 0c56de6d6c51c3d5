// From a tensor's dtype to a kernel's type, and what a kernel may assume of a tensor's rows.
#pragma once

#include <cstdint>

#include "afnext/error.h"
#include "afnext/tensor.h"
#include "cuda/arch/numbers.h"

namespace afnext::cuda {

// Calls `use` with a zero of the type: float, bf16 or f16.
template <typename Use>
void with_dtype(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::f32:
      return use(float{});
    case DType::bf16:
      return use(bf16{});
    case DType::f16:
      return use(f16{});
    default:
      throw Error("CUDA kernels take float32, bfloat16 and float16");
  }
}

// Whether every row begins at a multiple of 16 bytes and has a multiple of 16 bytes.
inline bool rows_align(const TensorView& t) {
  constexpr int64_t kBytes = 16;
  const int64_t size = dtype_size(t.dtype);
  bool aligned = reinterpret_cast<uintptr_t>(t.data) % kBytes == 0 && t.last() * size % kBytes == 0;
  for (int i = 0; i + 1 < t.ndim; ++i) {
    aligned = aligned && (t.shape[i] == 1 || t.stride[i] * size % kBytes == 0);
  }
  return aligned;
}

}  // namespace afnext::cuda
