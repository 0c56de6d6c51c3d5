#include "cpu/packed_linear.h"

#include "cpu/pack.h"
#include "cpu/packed_vectors.h"

namespace afnext::cpu::AFNEXT_ISA {

void packed_linear(const PackedLinearArgs& args) {
  const int64_t steps = dense_steps(args.weight);
  if (args.weight.format == WeightFormat::f32) {
    return PackedProduct<VectorKernel<FloatProduct>>(args, steps).run();
  }
#if defined(__AVX512BF16__)
  if (args.dtype == DType::bf16) {
    return PackedProduct<VectorKernel<PairProduct>>(args, steps).run();
  }
#endif
  PackedProduct<VectorKernel<WideProduct>>(args, steps).run();
}

AFNEXT_REGISTER(packed_linear, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
