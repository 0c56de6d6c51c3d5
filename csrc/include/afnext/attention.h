#pragma once

#include "afnext/tensor.h"

namespace afnext {

// What attention is asked for besides its tensors. Pointers may be null where they say so.
struct AttentionOptions {
  // On the CPU, wherever the others are: metadata.
  const TensorView *cu_seqlens_q, *cu_seqlens_k;  // int32 [N + 1]; null: all tokens are one
  const TensorView* key_lengths;  // int32 [N] or null: how many keys of each sequence count
  // Rotation, all three or none: float32 [Tq], [Tk], [R / 2].
  const TensorView *times_q, *times_k, *inv_freq;
  bool interleaved;
  bool causal;
  int64_t window_left, window_right;  // keys before and after a query's own; -1 is unlimited
  double scale;
};

// Softmax attention over packed sequences, query head h reading KV head h / (Hq / Hkv); masks are
// aligned at the bottom right of each sequence. A query that sees no key gives 0 and -inf.
//
//   q: float32 or bfloat16 (CUDA: float16 too) [Tq, Hq, D], k, v: [Tk, Hkv, D] of its dtype, unit
//   stride in D <= 256. out: [Tq, Hq, D], of q's dtype or float32; lse: float32 [Hq, Tq], natural
//   logarithm.
void attention(const TensorView& q, const TensorView& k, const TensorView& v,
               const AttentionOptions& options, const TensorView& out, const TensorView& lse,
               Stream stream = {});
// The same by the kernel for AMX tiles (bfloat16, D a multiple of 32), with the tiles emulated in
// plain C++ where the machine has none: for tests.
void attention_tiles(const TensorView& q, const TensorView& k, const TensorView& v,
                     const AttentionOptions& options, const TensorView& out, const TensorView& lse);

// Gradients of q, k and v (contiguous, of their shapes and dtype) from those of out (out's shape,
// q's dtype or float32) and of lse (float32 [Hq, Tq], null for none), and from the forward's
// results. The same bits for any number of threads, and each time on CUDA. On CUDA too, cu_seqlens
// and key_lengths are on the CPU.
void attention_backward(const TensorView& grad_out, const TensorView* grad_lse, const TensorView& q,
                        const TensorView& k, const TensorView& v, const TensorView& out,
                        const TensorView& lse, const AttentionOptions& options,
                        const TensorView& grad_q, const TensorView& grad_k,
                        const TensorView& grad_v, Stream stream = {});
// The same by the kernel for AMX tiles (bfloat16, grad_out and out too, D a multiple of 32), as
// attention_tiles.
void attention_backward_tiles(const TensorView& grad_out, const TensorView* grad_lse,
                              const TensorView& q, const TensorView& k, const TensorView& v,
                              const TensorView& out, const TensorView& lse,
                              const AttentionOptions& options, const TensorView& grad_q,
                              const TensorView& grad_k, const TensorView& grad_v,
                              Stream stream = {});

}  // namespace afnext
