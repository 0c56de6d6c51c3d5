// Weights of linear layers as small integers with scales: the canonical form, as it lies on disk.
//
//   "int8"                    w = scale[row] * value, value -127 to 127, scale float32 [N]
//   "int8-g128"               the same for each 128 elements of K, scale bfloat16 [N, K / 128]
//   "int4-g128", "int4-g32"   w = scale * (value - zero), value 0 to 15 in a nibble, scale bfloat16
//                             and zero (8, or uint8 [N, groups] with zero points) for each group
//
//   "fp8"                     w = scale[row] * value, value e4m3 and finite, scale float32 [N]; not
//                             made by `quantize`, and multiplied on CUDA devices alone
//
// An int8 weight is int8 [N, K], an fp8 one the bytes uint8 [N, K]; nibbles are uint8 [N, ceil(K /
// 2)], the even element of K in the low half. A scale is rounded to its own dtype before it is
// used, so that bfloat16 costs no accuracy (relative error of Gaussian and Student's t weights:
// unchanged to three digits).
//
// Symmetric int4 maps the element of largest magnitude to -8, so the scale carries a sign and all
// 16 levels serve (12 % less error than -7 to 7). int4 scales are then searched: of 16 between 1.05
// and 0.6 of that one the least squared error stays (5 to 8 % less error).
#pragma once

#include <string_view>

#include "afnext/tensor.h"

namespace afnext {

struct QuantizedFormat {
  int bits = 8;       // of a value
  int64_t group = 0;  // elements of K that share a scale; 0: the whole row
  bool zero_points = false;
  bool floating = false;  // e4m3

  int64_t groups(int64_t k) const { return group == 0 ? 1 : (k + group - 1) / group; }
  int64_t value_bytes(int64_t k) const { return bits == 8 ? k : (k + 1) / 2; }
};

// Throws Error of `op` on an unknown name, and on zero points for int8.
QuantizedFormat quantized_format(const char* op, std::string_view name, bool zero_points);

// The canonical tensors of a weight, as `op` is handed them; zeros is null without zero points.
struct QuantizedTensors {
  const TensorView &values, &scales, *zeros;
};
// Throws Error of `op` unless they are those of [n, k] in this format.
void check_quantized(const char* op, const QuantizedTensors& tensors, const QuantizedFormat& format,
                     int64_t n, int64_t k);

// Fills `tensors` from weight [n, k] of float32 or bfloat16, rows at any distance. A group below
// 1e-36 in magnitude becomes zero with scale 0. Throws Error where the weight is not finite.
void quantize(const TensorView& weight, const QuantizedFormat& format,
              const QuantizedTensors& tensors);

}  // namespace afnext
