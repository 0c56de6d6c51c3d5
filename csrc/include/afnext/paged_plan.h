#pragma once

#include <memory>

#include "afnext/paged_attention.h"
#include "afnext/tensor.h"

namespace afnext {

// The most that a plan's batches can hold: its memory is taken once.
struct PagedLimits {
  int64_t requests;
  int64_t pages;        // of a request
  int64_t queries = 1;  // of a request: 1 is decode
  int64_t tokens = 0;   // new tokens of a batch; 0: requests * queries
  // Parts that a request's keys are split into, at most: 32 of 4 KV heads are a block for each of
  // an H100's 132 SMs.
  int64_t splits = 32;
};

// What of the attention's question is the same for every batch.
struct PagedPlanOptions {
  int64_t heads;  // of q
  bool causal = true;
  int64_t window_left = -1, window_right = -1;
};

// Requests and their pages, told once a step and read by every layer's append and attention.
//
// On CUDA `update` checks the batch on the host and sends it by one asynchronous copy to memory
// that stays where it is; `append` and `attend` allocate nothing, never wait and launch grids that
// the limits alone decide. Captured in a graph they serve whatever the plan is updated with before
// a replay; `update` itself is called outside of captures, on the stream of the replays. A
// request's result depends on the request and on `splits`, not on the batch, the other limits or
// the pages.
//
// Kernels pass by a page id that is out of the pool (device memory can be written over), read zeros
// in its place, and say so: the next `update`, or `check`, throws an Error that names the request.
// On the CPU a plan holds the batch and calls paged_append and paged_attention.
//
// Not to be used by two threads at once.
class PagedAttentionPlan {
 public:
  // For pages of k_pages' shape and device.
  PagedAttentionPlan(const TensorView& k_pages, const PagedLimits& limits,
                     const PagedPlanOptions& options, Stream stream = {});
  ~PagedAttentionPlan();

  // On the CPU: page_table: int32 [N, max_pages]; cu_seqlens: int32 [N + 1], where requests begin
  // and end among the new tokens; kv_lengths: int32 [N], tokens with the new ones.
  void update(const TensorView& page_table, const TensorView& cu_seqlens,
              const TensorView& kv_lengths, Stream stream = {});
  // As afnext::paged_append, a request's new tokens being the last that it holds. k and v may have
  // more rows than the batch has tokens.
  void append(const TensorView& k, const TensorView& v, const TensorView& k_pages,
              const TensorView& v_pages, const TensorView* times, const TensorView* inv_freq,
              bool interleaved, const TensorView* k_scales, const TensorView* v_scales,
              Stream stream = {});
  // As afnext::paged_attention; masks are the plan's, whatever `options` has. q, out and lse may
  // have more rows than the batch has tokens: nobody counts on what is in them.
  void attend(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
              PagedAttentionOptions options, const TensorView& out, const TensorView& lse,
              Stream stream = {});
  // Waits for the stream, and throws if a kernel has met a bad page since the last update.
  void check(Stream stream = {});

  // What the kernels read (csrc/cuda/paged_work.h says what is in it), for tests and debuggers:
  // empty on the CPU.
  struct Words {
    int32_t* device = nullptr;
    int64_t count = 0;
  };
  Words words() const;

  struct Backend;

 private:
  std::unique_ptr<Backend> backend_;
  TensorView pages_;  // shape and device
  PagedLimits limits_;
  PagedPlanOptions options_;
  int64_t tokens_ = 0;
  int64_t without_start_ = -1;  // a request with more new tokens than it holds
};

}  // namespace afnext
