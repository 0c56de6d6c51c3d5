#pragma once

#include "afnext/pack_quantized.h"

namespace afnext::cuda {

// On checked arguments, into layout "mma-v2" and out of it.
void pack(const TensorView& weight, const PackedView& view, Stream stream);
void pack_quantized(const QuantizedTensors& tensors, const PackedView& view, Stream stream);
// out: float32, bfloat16 or float16, the products of values and scales rounded once.
void unpack(const PackedView& view, const TensorView& out, Stream stream);

}  // namespace afnext::cuda
