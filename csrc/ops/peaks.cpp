#include "afnext/peaks.h"

#include <atomic>

#include "afnext/error.h"
#include "cpu/peaks.h"

namespace afnext {

constinit cpu::KernelTable<cpu::PeaksArgs> cpu::peaks_kernels;

uint64_t peak_read(const TensorView& buffer) {
  const Check check("peak_read");
  check.on_cpu(buffer, "buffer");
  check.contiguous(buffer, "buffer");
  std::atomic<uint64_t> seen{0};
  const cpu::PeakRead read{buffer.data, buffer.numel() * dtype_size(buffer.dtype), &seen};
  cpu::peaks_kernels({&read, nullptr});
  return seen;
}

double peak_arithmetic(DType dtype, const TensorView& operands, int64_t steps) {
  const Check check("peak_arithmetic");
  check.exact(operands, "operands", DType::f32, {cpu::kPeakOperands});
  check.require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::i8,
                "dtype must be float32, bfloat16 or int8");
  check.require(steps >= 0, "steps must not be negative");
  std::atomic<double> operations{0};
  const cpu::PeakArithmetic arithmetic{dtype, operands.as<float>(), steps, &operations};
  cpu::peaks_kernels({nullptr, &arithmetic});
  return operations;
}

}  // namespace afnext
