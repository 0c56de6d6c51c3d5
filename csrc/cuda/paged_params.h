// What the paged attention kernels are given, and what they share.
#pragma once

#include "cuda/arch/bytes.h"
#include "cuda/arch/memory.h"
#include "cuda/arch/warp.h"
#include "cuda/paged_work.h"
#include "cuda/rotation.h"
#include "ops/paged_plan.h"

namespace afnext::cuda {

// Quotients by a number that is known on the host: n < 2**31.
class Divider {
 public:
  explicit Divider(uint32_t divisor) : divisor_(divisor) {
    int bits = 0;
    while ((uint64_t{1} << bits) < divisor) ++bits;
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + divisor - 1) / divisor);
    shift_ = bits - 1;
  }
  AFNEXT_DEVICE int divide(int n) const {
    if (divisor_ == 1) return n;
    return static_cast<int>((static_cast<uint64_t>(n) * multiplier_ >> 32) >> shift_);
  }
  AFNEXT_DEVICE int remainder(int n) const { return n - divide(n) * divisor(); }
  AFNEXT_DEVICE int divisor() const { return static_cast<int>(divisor_); }

 private:
  uint32_t divisor_, multiplier_;
  int shift_;
};

// Of tokens, as the caller has them: float32, int32 or int64.
struct Times {
  const void* data = nullptr;
  DType dtype = DType::f32;

  AFNEXT_DEVICE float operator[](int token) const {
    if (dtype == DType::i64) return static_cast<float>(static_cast<const int64_t*>(data)[token]);
    if (dtype == DType::i32) return static_cast<float>(static_cast<const int32_t*>(data)[token]);
    return static_cast<const float*>(data)[token];
  }
};

// Pages of one layer, and the table of a batch.
struct PageParams {
  const int32_t* words;  // PagedHeader and what follows it
  int32_t* error;        // gets a PagedError; may be null
  int32_t pool;          // pages
  int32_t kv_heads, dim;
  Divider slots;

  AFNEXT_DEVICE void fail(int what) const {
    if (error != nullptr) arch::tell_host(error, what);
  }
  // The page of token `key`, or -1 with the error set.
  AFNEXT_DEVICE int page(int first_page, int key, int request) const {
    const int id = words[first_page + slots.divide(key)];
    if (id >= 0 && id < pool) return id;
    fail(PagedError::kBadPage | request);
    return -1;
  }
  // A row of [P, Hkv, slot].
  AFNEXT_DEVICE int64_t row(int page, int head, int key) const {
    return (static_cast<int64_t>(page) * kv_heads + head) * slots.divisor() + slots.remainder(key);
  }
};

struct PagedAttentionParams {
  PageParams pages;
  const void *q, *k_pages, *v_pages;
  const float *k_scales, *v_scales;  // of pages of bytes
  Times times;
  const float* inv_freq;  // null without rotation
  void* out;
  float* lse;
  float *partial_out, *partial_lse;  // [rows, partial_dim] and [rows]
  int32_t partial_dim;               // dim, rounded up to vectors
  int64_t q_token, q_head;           // strides, elements
  int64_t left, right;               // of the window: at most 2**40
  Divider group;
  int32_t half, query_tokens;
  bool interleaved;
  float scale;  // times log2(e)
};

// Rows of one item and what each sees.
struct PagedRows {
  int first_row, count;  // rows of the item, those of them that there are
  int first_query, head;
  Divider group;
  int64_t last;  // a row of query i stands at key i + last
  int64_t left, right;
  int begin, end;

  AFNEXT_DEVICE PagedRows(const PagedAttentionParams& p, const PagedItem& item, int kv_head,
                          int most)
      : first_row(item.first_row),
        count(item.queries * p.group.divisor() - item.first_row),
        first_query(item.first_query),
        head(kv_head * p.group.divisor()),
        group(p.group),
        last(static_cast<int64_t>(item.keys) - item.queries),
        left(p.left),
        right(p.right),
        begin(item.begin),
        end(item.end) {
    if (count > most) count = most;
    if (item.first_query + item.queries > p.query_tokens) {
      p.pages.fail(PagedError::kTooManyTokens | item.request);
      count = 0;
    }
  }
  AFNEXT_DEVICE int query(int row) const { return group.divide(first_row + row); }
  AFNEXT_DEVICE int token(int row) const { return first_query + query(row); }
  AFNEXT_DEVICE int q_head(int row) const { return head + group.remainder(first_row + row); }
  // Row r sees the keys [low(r), high(r)) of the item.
  AFNEXT_DEVICE int low(int row) const { return within(query(row) + last - left); }
  AFNEXT_DEVICE int high(int row) const { return within(query(row) + last + right + 1); }

 private:
  AFNEXT_DEVICE int within(int64_t key) const {
    return key < begin ? begin : key > end ? end : static_cast<int>(key);
  }
};

// Natural logarithm of a sum of powers of two: of `sum` * 2**top.
AFNEXT_DEVICE float log_of(float top, float sum) {
  return sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
}

}  // namespace afnext::cuda
