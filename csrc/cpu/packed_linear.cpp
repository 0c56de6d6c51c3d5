#include "cpu/packed_linear.h"

#include "cpu/pack.h"
#include "cpu/packed_vectors.h"

namespace afnext::cpu::AFNEXT_ISA {

void packed_linear(const PackedLinearArgs& args) {
  const int64_t steps = dense_steps(args.weight);
  if (args.weight.format == WeightFormat::f32) {
    PackedProduct<VectorKernel<FloatProduct>>(args, steps).run();
  } else if (args.dtype == DType::f32) {
    PackedProduct<VectorKernel<WideProduct>>(args, steps).run();
  } else {
    PackedProduct<VectorKernel<Bf16Product>>(args, steps).run();
  }
}

AFNEXT_REGISTER(packed_linear, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
