#include "afnext/merge_attention.h"

#include "afnext/error.h"
#include "cpu/merge_attention.h"
#include "cuda/backend.h"
#include "cuda/merge_attention.h"

namespace afnext {

constinit cpu::KernelTable<cpu::MergeAttentionArgs> cpu::merge_attention_kernels;

void merge_attention(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                     const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                     Stream stream) {
  const Check check("merge_attention", out_a);
  check.floating(out_a, "out_a", 3);
  check.contiguous(out_a, "out_a");
  check.same(out_b, "out_b", out_a);
  check.contiguous(out_b, "out_b");
  check.same(out, "out", out_a);
  check.contiguous(out, "out");
  const int64_t tokens = out_a.shape[0], heads = out_a.shape[1];
  check.exact(lse_a, "lse_a", DType::f32, {heads, tokens});
  check.exact(lse_b, "lse_b", DType::f32, {heads, tokens});
  check.exact(lse, "lse", DType::f32, {heads, tokens});
  if constexpr (kCuda) {
    if (on_cuda(out_a)) {
      return cuda::merge_attention(out_a, lse_a, out_b, lse_b, out, lse, stream);
    }
  }
  cpu::merge_attention_kernels({out_a.dtype, tokens, heads, out_a.shape[2], out_a.data, out_b.data,
                                lse_a.as<float>(), lse_b.as<float>(), out.data, lse.as<float>()});
}

}  // namespace afnext
