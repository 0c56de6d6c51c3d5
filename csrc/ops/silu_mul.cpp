#include "afnext/silu_mul.h"

#include "afnext/error.h"
#include "cpu/silu_mul.h"
#include "cuda/backend.h"
#include "cuda/silu_mul.h"

namespace afnext {

constinit cpu::KernelTable<cpu::SiluMulArgs> cpu::silu_mul_kernels;

void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out, Stream stream) {
  const Check check("silu_mul", gate);
  check.floating(gate, "gate");
  check.same(up, "up", gate);
  check.same(out, "out", gate);
  check.contiguous(out, "out");
  check.require(gate.has_uniform_rows(), "gate must have rows at a uniform distance");
  check.require(up.has_uniform_rows(), "up must have rows at a uniform distance");
  if (gate.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(gate)) return cuda::silu_mul(gate, up, out, stream);
  }
  cpu::silu_mul_kernels({gate.dtype, gate.rows(), gate.last(), gate.data, up.data,
                         gate.row_stride(), up.row_stride(), out.data});
}

}  // namespace afnext
