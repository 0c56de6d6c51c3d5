// What the paged kernels read from device memory instead of from their parameters, so that a
// captured launch serves another batch: one block of int32 words, filled on the host.
//
//   PagedHeader | PagedItem[small + large] | PagedMerge[merges] | PagedRequest[requests] | page ids
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "afnext/paged_plan.h"

namespace afnext::cuda {

// Query rows of one KV head: row r of a request is its query r / group, head r % group. A request
// of at most kSmallRows has one tile of that many, a larger one has tiles of kLargeRows.
constexpr int kSmallRows = 16;
constexpr int kLargeRows = 64;
// A part of a request's keys has at least this many: its float32 results are 2 x 4 bytes a channel
// and row, written and read, beside 2 x 2 bytes a channel and key: 16 rows cost a quarter, those of
// one query of most models a ninth. Short requests are latency, and fewer keys are less of it.
constexpr int kPartKeys = 128;
constexpr int kPartStep = 64;

struct alignas(16) PagedHeader {
  int32_t small, large;             // items
  int32_t merges, first_merge;      // and the word where they begin
  int32_t requests, first_request;  // likewise
  int32_t tokens, unused;
};

// One tile of rows against one part of the keys; a block does it for one KV head.
struct alignas(16) PagedItem {
  int32_t request, first_query, queries, keys;  // first_query: token of the packed batch
  int32_t first_row, begin, end;                // rows from here, keys [begin, end)
  int32_t pages;                                // the word where the request's page ids begin
  int32_t partial;        // row of partial results of row 0 and KV head 0; -1: nothing to merge
  int32_t partial_heads;  // rows of partial results from one KV head to the next
  int32_t unused[2];
};

// kSmallRows rows whose parts are merged.
struct alignas(16) PagedMerge {
  int32_t first_query, queries, first_row, parts;
  int32_t partial;  // row r of part p of head h: partial + (h * parts + p) * rows + r
  int32_t unused[3];
};

// Where paged_append finds a request's slots.
struct alignas(16) PagedRequest {
  int32_t first_query, start, pages, pages_end;  // start: position of its first new token
};

struct PagedCounts {
  int64_t small = 0, large = 0, merges = 0, partial_rows = 0, words = 0;
  int64_t merge_rows = 0;  // of a merge, at most
};

// What the work is divided by. Splits follow from a request alone, so that its bits do not depend
// on the batch; pages have no part in it.
struct PagedShape {
  int64_t group, kv_heads, slots;
  int64_t left, right;  // of the window, below 0: unlimited
  int64_t splits;
};

class PagedWork {
 public:
  // The batch on the host, checked; `attends`: with items and merges.
  void fill(const PagedShape& shape, const TensorView& page_table, const TensorView& cu_seqlens_q,
            const TensorView& kv_lengths, bool attends);

  const PagedCounts& counts() const { return counts_; }
  const int32_t* words() const { return words_.data(); }
  size_t bytes() const { return words_.size() * sizeof(int32_t); }

  // The most that a plan's batches can need.
  static PagedCounts most(const PagedShape& shape, const PagedLimits& limits);

 private:
  void add_items(const PagedShape& shape, int32_t request, int32_t first_query, int64_t queries,
                 int64_t keys);

  PagedCounts counts_;
  std::vector<PagedItem> small_, large_;
  std::vector<PagedMerge> merges_;
  std::vector<PagedRequest> requests_;
  std::vector<int32_t> words_;
};

}  // namespace afnext::cuda
