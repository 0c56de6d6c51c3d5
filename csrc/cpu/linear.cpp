// Plain weights. Few rows of x read them as they lie; many rows meet the kernels of packed weights.
#include "cpu/linear_panels.h"
#include "cpu/linear_rows.h"
#include "cpu/packed_vectors.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kFewColumns = kLanes / 2;

}  // namespace

void linear(const LinearArgs& args) {
  const bool few = args.m <= kLinearFewRows || args.n <= kFewColumns;
  if (args.dtype == DType::f32) {
    few ? linear_rows<float>(args)
        : linear_panels<float, VectorKernel<FloatProduct>>(args, WeightFormat::f32);
  } else {
    few ? linear_rows<bf16>(args)
        : linear_panels<bf16, VectorKernel<Bf16Product>>(args, WeightFormat::bf16);
  }
}

AFNEXT_REGISTER(linear, LinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
