// Where a plan's batch lies and how its ops run there.
#pragma once

#include "afnext/paged_plan.h"

namespace afnext {

// What paged_append moves; null as in its arguments.
struct PagedTokens {
  const TensorView &k, &v, &k_pages, &v_pages;
  const TensorView *times, *inv_freq;
  bool interleaved;
  const TensorView *k_scales, *v_scales;
};

// Kinds of errors that kernels find, beside the number of a request.
struct PagedError {
  static constexpr int32_t kRequest = (1 << 28) - 1;
  static constexpr int32_t kBadPage = 1 << 28;
  static constexpr int32_t kTooManyTokens = 2 << 28;  // for a launch captured with fewer
};

// All arguments are checked.
struct PagedAttentionPlan::Backend {
  virtual ~Backend() = default;
  virtual void update(const TensorView& page_table, const TensorView& cu_seqlens,
                      const TensorView& kv_lengths, Stream stream) = 0;
  virtual void append(const PagedTokens& tokens, Stream stream) = 0;
  virtual void attend(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                      const PagedAttentionOptions& options, const TensorView& out,
                      const TensorView& lse, Stream stream) = 0;
  // The PagedError that kernels have left since it was last asked for, or 0.
  virtual int32_t error() = 0;
  virtual void wait(Stream stream) = 0;
  virtual Words words() const = 0;
};

}  // namespace afnext
