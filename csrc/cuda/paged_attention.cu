// Which kernels serve a call, and what they are given. The kernels: paged_attention_kernel.h,
// paged_attention_plain.h, paged_merge.h.
#include <algorithm>
#include <limits>

#include "cuda/dispatch.h"
#include "cuda/paged_attention.h"
#include "cuda/paged_attention_launch.h"
#include "cuda/paged_attention_plain.h"
#include "cuda/paged_merge.h"

namespace afnext::cuda {
namespace {

int64_t window_side(int64_t width) {
  constexpr int64_t kUnlimited = int64_t{1} << 40;
  return width < 0 ? kUnlimited : std::min(width, kUnlimited);
}

const float* floats(const TensorView* t) { return t != nullptr ? t->as<float>() : nullptr; }

PagedAttentionParams params(const PagedBatch& batch, const TensorView& q, const TensorView& k_pages,
                            const TensorView& v_pages, const PagedAttentionOptions& options,
                            const TensorView& out, const TensorView& lse) {
  const int64_t* pages = k_pages.shape;
  const int64_t dim = pages[3];
  const bool turned = options.inv_freq != nullptr && options.inv_freq->last() > 0;
  return {{batch.words, batch.error, static_cast<int32_t>(pages[0]), static_cast<int32_t>(pages[1]),
           static_cast<int32_t>(dim), Divider(static_cast<uint32_t>(pages[2]))},
          q.data,
          k_pages.data,
          v_pages.data,
          floats(options.k_scales),
          floats(options.v_scales),
          turned ? Times{options.times->data, options.times->dtype} : Times{},
          turned ? floats(options.inv_freq) : nullptr,
          out.data,
          lse.as<float>(),
          batch.partials,
          batch.partials + batch.most.partial_rows * partial_dim(dim),
          static_cast<int32_t>(partial_dim(dim)),
          q.stride[0],
          q.stride[1],
          window_side(options.window_left),
          window_side(options.causal ? 0 : options.window_right),
          Divider(static_cast<uint32_t>(q.shape[1] / pages[1])),
          static_cast<int32_t>(turned ? options.inv_freq->last() : 0),
          static_cast<int32_t>(q.shape[0]),
          options.interleaved,
          static_cast<float>(options.scale) * kLog2E};
}

template <typename T>
void run_plain(const Call& call, const PagedBatch& batch, DType pages,
               const PagedAttentionParams& p) {
  const int64_t items = (batch.most.small + batch.most.large) * p.pages.kv_heads;
  constexpr int64_t kBlocks = 8;  // of an SM
  const dim3 grid(static_cast<unsigned>(std::min(items, kBlocks * call.device().multiprocessors)));
  constexpr int kThreads = kPlainWarps * arch::kWarp;
  if (pages == DType::i8) {
    call.launch_early<paged_attention_plain_kernel<T, int8_t>>(grid, kThreads, sizeof(PlainShared),
                                                               p);
  } else if (pages == DType::f8e4m3) {
    call.launch_early<paged_attention_plain_kernel<T, e4m3>>(grid, kThreads, sizeof(PlainShared),
                                                             p);
  } else {
    call.launch_early<paged_attention_plain_kernel<T, T>>(grid, kThreads, sizeof(PlainShared), p);
  }
}

template <typename T>
void merge(const Call& call, const PagedBatch& batch, const PagedAttentionParams& p) {
  if (batch.most.merges == 0) return;
  const int64_t rows = batch.most.merge_rows, heads = p.pages.kv_heads;
  constexpr int64_t kBlocks = 16;  // of an SM
  const int64_t most =
      std::max<int64_t>(1, kBlocks * call.device().multiprocessors / (rows * heads));
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(heads),
                  static_cast<unsigned>(std::min(batch.most.merges, most)));
  constexpr int kThreads = kMergeWarps * arch::kWarp;
  if (p.pages.dim <= 4 * arch::kWarp) {
    call.launch_early<paged_merge_kernel<T, 1>>(grid, kThreads, sizeof(MergeShared), p);
  } else {
    call.launch_early<paged_merge_kernel<T, 2>>(grid, kThreads, sizeof(MergeShared), p);
  }
}

}  // namespace

void run_paged_attention(const Call& call, const PagedBatch& batch, const TensorView& q,
                         const TensorView& k_pages, const TensorView& v_pages,
                         const PagedAttentionOptions& options, const TensorView& out,
                         const TensorView& lse) {
  const PagedAttentionParams p = params(batch, q, k_pages, v_pages, options, out, lse);
  // Tensor cores' kernels count rows of the pool in 32 bits.
  const bool aligned = rows_align(k_pages) && rows_align(v_pages) && rows_align(out) &&
                       k_pages.rows() <= std::numeric_limits<int32_t>::max();
  with_dtype(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      if (aligned) {
        launch_paged_attention<T>(call, batch, k_pages.dtype, p);
        return merge<T>(call, batch, p);
      }
    }
    run_plain<T>(call, batch, k_pages.dtype, p);
    merge<T>(call, batch, p);
  });
}

void paged_attention(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                     const TensorView& page_table, const TensorView& cu_seqlens_q,
                     const TensorView& kv_lengths, const PagedAttentionOptions& options,
                     const TensorView& out, const TensorView& lse, Stream stream) {
  const Call call("paged_attention", q, stream);
  PagedWork work;
  work.fill({q.shape[1] / k_pages.shape[1], k_pages.shape[1], k_pages.shape[2], options.window_left,
             options.causal ? 0 : options.window_right, PagedLimits{}.splits},
            page_table, cu_seqlens_q, kv_lengths, true);
  const Scratch words(call, work.bytes());
  const Scratch partials(call, partial_bytes(work.counts(), k_pages.shape[3]));
  call.upload(words.as<void>(), work.words(), work.bytes());
  run_paged_attention(call, {words.as<int32_t>(), nullptr, partials.as<float>(), work.counts()}, q,
                      k_pages, v_pages, options, out, lse);
}

}  // namespace afnext::cuda
