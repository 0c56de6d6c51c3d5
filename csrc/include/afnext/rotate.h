#pragma once

#include "afnext/tensor.h"

namespace afnext {

// Turns pairs of channels: (a, b) -> (a cos p - b sin p, b cos p + a sin p) with p = time *
// inv_freq (exact to 1e-6 rad however large, on CUDA up to six million) or a given angle. The first
// R channels turn, the rest is copied.
//
//   x, out: float32 or bfloat16 (on CUDA also float16) [T, H, D], x with any strides but unit
//   stride in D; out contiguous. times: float32 [T] and inv_freq: float32 [R / 2], or angles:
//   float32 [T, R / 2]; the others null. interleaved: pairs (2i, 2i + 1) instead of (i, i + R / 2).
//   inverse: turns the other way.
void rotate(const TensorView& x, const TensorView* times, const TensorView* inv_freq,
            const TensorView* angles, bool interleaved, bool inverse, const TensorView& out,
            Stream stream = {});

}  // namespace afnext
