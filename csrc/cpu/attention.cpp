#include "cpu/attention_forward.h"

namespace afnext::cpu::AFNEXT_ISA {

void attention(const AttentionArgs& args) {
  if (args.problem.dtype == DType::f32) return run<float, InFloats<float>>(args);
  // Partial results keep what rounding weights to bf16 would lose.
  if constexpr (kHasPairs) {
    if (!args.out_is_float) return run<bf16, InPairs>(args);
  }
  run<bf16, InFloats<bf16>>(args);
}

AFNEXT_REGISTER(attention, AttentionArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
