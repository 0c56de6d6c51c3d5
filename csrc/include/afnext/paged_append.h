#pragma once

#include "afnext/tensor.h"

namespace afnext {

// Token t of request n goes to slot (start[n] + t) % slot of page
// page_table[n, (start[n] + t) / slot], its key turned on the way. Everything is checked before the
// first write; where two tokens meet one slot, either may stay.
//
//   k, v: float32 or bfloat16 (on CUDA float16 too, and D <= 256) [T, Hkv, D], unit stride in D;
//   k_pages, v_pages: [P, Hkv, slot, D] of their dtype, int8 or, on CUDA, float8_e4m3fn,
//   contiguous; page_table: int32 [N, max_pages], cu_seqlens: int32 [N + 1], start: int32 [N], all
//   on the CPU; k_scales, v_scales: float32 [P, Hkv, slot], written where pages are of 8 bits
//   (symmetric, a scale for each token and head: the largest magnitude becomes 127, or 448), else
//   null; times: float32 (on CUDA int32 and int64 too) [T] and inv_freq: float32 [R / 2], or both
//   null.
void paged_append(const TensorView& k, const TensorView& v, const TensorView& k_pages,
                  const TensorView& v_pages, const TensorView& page_table,
                  const TensorView& cu_seqlens, const TensorView& start, const TensorView* times,
                  const TensorView* inv_freq, bool interleaved, const TensorView* k_scales,
                  const TensorView* v_scales, Stream stream = {});

}  // namespace afnext
