#include "cpu/packed_linear.h"

#include "cpu/pack.h"
#include "cpu/packed_vectors.h"

namespace afnext::cpu::AFNEXT_ISA {

void packed_linear(const PackedLinearArgs& args) {
  const int64_t steps = dense_steps(args.weight);
  if (args.weight.format == WeightFormat::f32) {
    return packed_product<VectorKernel<FloatProduct>>(args, steps);
  }
#if defined(__AVX512BF16__)
  if (args.dtype == DType::bf16) return packed_product<VectorKernel<PairProduct>>(args, steps);
#endif
  packed_product<VectorKernel<WideProduct>>(args, steps);
}

AFNEXT_REGISTER(packed_linear, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
