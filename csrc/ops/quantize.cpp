#include "afnext/quantize.h"

#include <atomic>
#include <string>

#include "afnext/error.h"
#include "cpu/quantize.h"

namespace afnext {

constinit cpu::KernelTable<cpu::QuantizeArgs> cpu::quantize_kernels;

QuantizedFormat quantized_format(const char* op, std::string_view name, bool zero_points) {
  QuantizedFormat format;
  if (name == "int8") {
    format = {8, 0, zero_points};
  } else if (name == "int8-g128") {
    format = {8, 128, zero_points};
  } else if (name == "int4-g128") {
    format = {4, 128, zero_points};
  } else if (name == "int4-g32") {
    format = {4, 32, zero_points};
  } else {
    Check(op).fail("format must be int8, int8-g128, int4-g128 or int4-g32, got '" +
                   std::string(name) + "'");
  }
  Check(op).require(!zero_points || format.bits == 4, "zero_points are for int4 formats");
  return format;
}

void check_quantized(const char* op, const QuantizedTensors& tensors, const QuantizedFormat& format,
                     int64_t n, int64_t k) {
  const Check check(op, tensors.values);
  const int64_t groups = format.groups(k);
  check.exact(tensors.values, "values",
              format.bits == 8 && !format.floating ? DType::i8 : DType::u8,
              {n, format.value_bytes(k)});
  if (format.group == 0) {
    check.exact(tensors.scales, "scales", DType::f32, {n});
  } else {
    check.exact(tensors.scales, "scales", DType::bf16, {n, groups});
  }
  check.require((tensors.zeros != nullptr) == format.zero_points,
                "zeros belong to a format with zero points, and to no other");
  if (tensors.zeros != nullptr) check.exact(*tensors.zeros, "zeros", DType::u8, {n, groups});
}

void quantize(const TensorView& weight, const QuantizedFormat& format,
              const QuantizedTensors& tensors) {
  const Check check("quantize");
  check.floating(weight, "weight", 2);
  const int64_t n = weight.shape[0], k = weight.shape[1];
  check_quantized("quantize", tensors, format, n, k);
  std::atomic<bool> finite{true};
  cpu::quantize_kernels({weight.dtype, n, k, weight.data, weight.row_stride(), format,
                         tensors.values.data, tensors.scales.data,
                         tensors.zeros != nullptr ? tensors.zeros->data : nullptr, &finite});
  check.require(finite, "weight must be finite, it has NaN or infinity");
}

}  // namespace afnext
