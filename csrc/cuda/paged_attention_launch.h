// The tensor-core kernels of one dtype of queries: a file each, for they are many.
#pragma once

#include <algorithm>

#include "cuda/arch/call.h"
#include "cuda/paged_attention_kernel.h"
#include "cuda/paged_batch.h"

namespace afnext::cuda {

// Head dims that are not 64, 128 or 256 take the next; `pages`: of T, int8 or e4m3.
template <typename T>
void launch_paged_attention(const Call& call, const PagedBatch& batch, DType pages,
                            const PagedAttentionParams& p);

extern template void launch_paged_attention<bf16>(const Call&, const PagedBatch&, DType,
                                                  const PagedAttentionParams&);
extern template void launch_paged_attention<f16>(const Call&, const PagedBatch&, DType,
                                                 const PagedAttentionParams&);

namespace launches {

template <typename Tile>
void run(const Call& call, int64_t items, const PagedAttentionParams& p) {
  if (items == 0) return;
  constexpr int64_t kReserved = 1 << 10;  // of a block's shared memory, by the driver
  const auto bytes = static_cast<int64_t>(sizeof(typename Tile::Shared));
  const auto memory = static_cast<int64_t>(call.device().shared_bytes) + kReserved;
  const int64_t blocks = std::clamp<int64_t>(memory / (bytes + kReserved), 1, Tile::kBlocks);
  const int64_t most =
      std::max<int64_t>(1, blocks * call.device().multiprocessors / p.pages.kv_heads);
  const dim3 grid(static_cast<unsigned>(p.pages.kv_heads),
                  static_cast<unsigned>(std::min(items, most)));
  call.launch_early<paged_attention_kernel<Tile>>(grid, Tile::kThreads,
                                                  sizeof(typename Tile::Shared), p);
}

template <typename T, typename Page, int kDim>
void run_dim(const Call& call, const PagedBatch& batch, const PagedAttentionParams& p) {
  run<PagedTile<T, Page, kDim, 1, kDim == 256 ? 2 : 4>>(call, batch.most.small, p);
  run<PagedTile<T, Page, kDim, 4, 1>>(call, batch.most.large, p);
}

template <typename T, typename Page>
void run_pages(const Call& call, const PagedBatch& batch, const PagedAttentionParams& p) {
  if (p.pages.dim <= 64) {
    run_dim<T, Page, 64>(call, batch, p);
  } else if (p.pages.dim <= 128) {
    run_dim<T, Page, 128>(call, batch, p);
  } else {
    run_dim<T, Page, 256>(call, batch, p);
  }
}

}  // namespace launches

template <typename T>
void launch_paged_attention(const Call& call, const PagedBatch& batch, DType pages,
                            const PagedAttentionParams& p) {
  if (pages == DType::i8) {
    launches::run_pages<T, int8_t>(call, batch, p);
  } else if (pages == DType::f8e4m3) {
    launches::run_pages<T, e4m3>(call, batch, p);
  } else {
    launches::run_pages<T, T>(call, batch, p);
  }
}

}  // namespace afnext::cuda
