#pragma once

#include "afnext/tensor.h"

namespace afnext {

// What paged attention is asked for besides its tensors.
struct PagedAttentionOptions {
  // Turn q: float32 (on CUDA int32 and int64 too) [T] and float32 [R / 2], or both null.
  const TensorView *times, *inv_freq;
  bool interleaved;
  bool causal;
  int64_t window_left, window_right;  // keys before and after a query's own; -1 is unlimited
  double scale;
  const TensorView *k_scales, *v_scales;  // float32 [P, Hkv, slot] of 8-bit pages, or null
};

// Softmax attention of each request's last queries over the pages that hold its keys and values;
// query head h reads KV head h / (Hq / Hkv), masks are aligned at the bottom right. A query that
// sees no key gives 0 and -inf. The same bits whatever the threads, the pages and the rest of the
// batch are: keys are split by the request's own length and queries alone, on CUDA into at most 32
// parts. A NaN or an infinity in a value spoils the queries that see it, and perhaps others of the
// same request: keys that a mask hides weigh 0, but are multiplied all the same where they share a
// block (on the CPU up to 256 keys of the request) with keys that the query, or one that is
// computed beside it, sees. It never spoils another request.
//
//   q: float32 or bfloat16 (on CUDA float16 too) [T, Hq, D], unit stride in D <= 256; k_pages,
//   v_pages: [P, Hkv, slot, D] of its dtype, int8 or, on CUDA, float8_e4m3fn, contiguous;
//   page_table: int32 [N, max_pages], cu_seqlens_q: int32 [N + 1], kv_lengths: int32 [N], all on
//   the CPU; out: [T, Hq, D] contiguous; lse: float32 [Hq, T].
void paged_attention(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                     const TensorView& page_table, const TensorView& cu_seqlens_q,
                     const TensorView& kv_lengths, const PagedAttentionOptions& options,
                     const TensorView& out, const TensorView& lse, Stream stream = {});

}  // namespace afnext
