#include "cpu/attention_backward_pass.h"

namespace afnext::cpu::AFNEXT_ISA {

void attention_backward(const AttentionBackwardArgs& args) {
  if (args.problem.dtype == DType::f32) return run<float, InFloats<float>>(args);
  // Gradients of partial results keep what rounding them to bf16 would lose.
  if constexpr (kHasPairs) {
    if (!args.grad_out_is_float && !args.out_is_float) return run<bf16, InPairs>(args);
  }
  run<bf16, InFloats<bf16>>(args);
}

AFNEXT_REGISTER(attention_backward, AttentionBackwardArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
