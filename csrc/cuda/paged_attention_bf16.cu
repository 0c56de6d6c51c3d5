#include "cuda/paged_attention_launch.h"

namespace afnext::cuda {

template void launch_paged_attention<bf16>(const Call&, const PagedBatch&, DType,
                                           const PagedAttentionParams&);

}  // namespace afnext::cuda
