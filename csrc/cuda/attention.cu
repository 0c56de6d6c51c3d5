#include "cuda/arch/call.h"
#include "cuda/attention.h"
#include "cuda/attention_kernel.h"
#include "cuda/attention_plan.h"
#include "cuda/attention_rows.h"
#include "cuda/attention_sm90.h"

namespace afnext::cuda {
namespace {

template <typename T, int kDim>
void run(const Call& call, AttentionPlan& plan) {
  using Shape = AttentionShape<kDim>;
  const AttentionParams& p = plan.params(Shape::kRows);
  call.launch<attention_kernel<T, kDim>>(static_cast<unsigned>(p.items), Shape::kThreads,
                                         sizeof(AttentionShared<T, kDim>), p);
}

template <typename T>
void run(const Call& call, int64_t dim, AttentionPlan& plan) {
  if (dim <= 32) return run<T, 32>(call, plan);
  if (dim <= 64) return run<T, 64>(call, plan);
  if (dim <= 96) return run<T, 96>(call, plan);
  if (dim <= 128) return run<T, 128>(call, plan);
  if (dim <= 192) return run<T, 192>(call, plan);
  return run<T, 256>(call, plan);
}

}  // namespace

void attention(const TensorView& q, const TensorView& k, const TensorView& v,
               const AttentionOptions& options, const TensorView& out, const TensorView& lse,
               Stream stream) {
  const Call call("attention", q, stream);
  AttentionPlan plan(call, q, k, v, options, out, lse);
  if (attention_sm90(call, q, k, v, options, out, plan)) return;
  if (q.dtype == DType::f32) {
    const AttentionParams& p = plan.params(kRowWarps);
    call.launch<attention_rows_kernel>(static_cast<unsigned>(p.items), kRowThreads,
                                       sizeof(AttentionRowsShared), p);
  } else if (q.dtype == DType::bf16) {
    run<bf16>(call, q.shape[2], plan);
  } else {
    run<f16>(call, q.shape[2], plan);
  }
}

}  // namespace afnext::cuda
