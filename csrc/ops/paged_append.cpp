#include "afnext/paged_append.h"

#include <string>

#include "cpu/paged_append.h"
#include "cuda/backend.h"
#include "cuda/paged_append.h"
#include "ops/pages.h"

namespace afnext {

constinit cpu::KernelTable<cpu::PagedAppendArgs> cpu::paged_append_kernels;

void paged_append(const TensorView& k, const TensorView& v, const TensorView& k_pages,
                  const TensorView& v_pages, const TensorView& page_table,
                  const TensorView& cu_seqlens, const TensorView& start, const TensorView* times,
                  const TensorView* inv_freq, bool interleaved, const TensorView* k_scales,
                  const TensorView* v_scales, Stream stream) {
  const Check check("paged_append", k);
  const PagedTokens tokens{k,        v,           k_pages,  v_pages, times,
                           inv_freq, interleaved, k_scales, v_scales};
  check_append(check, tokens);
  check.offsets(cu_seqlens, "cu_seqlens", DType::i32, k.shape[0]);
  const int64_t requests = cu_seqlens.shape[0] - 1;
  check.metadata(start, "start", DType::i32, {requests});
  check_table(check, page_table, requests);
  const int64_t half = inv_freq ? inv_freq->last() : 0;
  const int32_t *ends = cu_seqlens.as<int32_t>(), *starts = start.as<int32_t>();
  for (int64_t n = 0; n < requests; ++n) {
    if (starts[n] < 0) check.fail("start[" + std::to_string(n) + "] must not be negative");
    const int64_t length = ends[n + 1] - ends[n];
    if (length == 0) continue;
    check_tokens(check, page_table, k_pages, n, starts[n], starts[n] + length, "start + length");
  }
  if (k.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(k)) return cuda::paged_append(tokens, page_table, cu_seqlens, start, stream);
  }
  cpu::paged_append_kernels({k.dtype,
                             k.shape[1],
                             k.shape[2],
                             k_pages.shape[2],
                             requests,
                             {k.data, k.stride[0], k.stride[1]},
                             {v.data, v.stride[0], v.stride[1]},
                             k_pages.data,
                             v_pages.data,
                             k_scales ? k_scales->as<float>() : nullptr,
                             v_scales ? v_scales->as<float>() : nullptr,
                             page_table.as<int32_t>(),
                             page_table.stride[0],
                             ends,
                             starts,
                             half > 0 ? times->as<float>() : nullptr,
                             half > 0 ? inv_freq->as<float>() : nullptr,
                             half,
                             interleaved});
}

}  // namespace afnext
