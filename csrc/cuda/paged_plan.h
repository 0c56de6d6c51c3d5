#pragma once

#include "ops/paged_plan.h"

namespace afnext::cuda {

std::unique_ptr<PagedAttentionPlan::Backend> paged_plan(const TensorView& k_pages,
                                                        const PagedLimits& limits,
                                                        const PagedPlanOptions& options,
                                                        Stream stream);

}  // namespace afnext::cuda
