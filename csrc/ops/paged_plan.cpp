#include "ops/paged_plan.h"

#include <string>
#include <vector>

#include "afnext/paged_append.h"
#include "cuda/backend.h"
#include "cuda/paged_plan.h"
#include "ops/pages.h"

namespace afnext {
namespace {

constexpr const char* kAppend = "paged_append";
constexpr const char* kAttention = "paged_attention";

TensorView ints(std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  TensorView t;
  t.data = values.data();
  t.dtype = DType::i32;
  for (const int64_t size : shape) t.shape[t.ndim++] = size;
  for (int64_t i = t.ndim - 1, packed = 1; i >= 0; packed *= t.shape[i--]) t.stride[i] = packed;
  return t;
}

TensorView first_rows(TensorView t, int64_t rows) {
  t.shape[0] = rows;
  return t;
}

// Holds the batch and calls the ops. A last request without keys takes the rows of q that no
// request of the batch has.
class HeldBatch final : public PagedAttentionPlan::Backend {
 public:
  void update(const TensorView& page_table, const TensorView& cu_seqlens,
              const TensorView& kv_lengths, Stream) override {
    requests_ = kv_lengths.shape[0];
    width_ = page_table.shape[1];
    const auto* ends = cu_seqlens.as<int32_t>();
    ends_.assign(ends, ends + requests_ + 1);
    ends_.push_back(ends_.back());
    lengths_.assign(kv_lengths.as<int32_t>(), kv_lengths.as<int32_t>() + requests_);
    start_.clear();
    table_.clear();
    for (int64_t n = 0; n < requests_; ++n) {
      start_.push_back(lengths_[n] - (ends[n + 1] - ends[n]));
      const int32_t* row = page_table.as<int32_t>() + n * page_table.stride[0];
      table_.insert(table_.end(), row, row + width_);
    }
    lengths_.push_back(0);
    table_.insert(table_.end(), width_, 0);
  }

  void append(const PagedTokens& t, Stream) override {
    const int64_t tokens = ends_[requests_];
    paged_append(first_rows(t.k, tokens), first_rows(t.v, tokens), t.k_pages, t.v_pages,
                 ints(table_, {requests_, width_}), ints(ends_, {requests_ + 1}),
                 ints(start_, {requests_}), times_of(t.times, tokens), t.inv_freq, t.interleaved,
                 t.k_scales, t.v_scales);
  }

  void attend(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
              const PagedAttentionOptions& options, const TensorView& out, const TensorView& lse,
              Stream) override {
    ends_.back() = static_cast<int32_t>(q.shape[0]);
    paged_attention(q, k_pages, v_pages, ints(table_, {requests_ + 1, width_}),
                    ints(ends_, {requests_ + 2}), ints(lengths_, {requests_ + 1}), options, out,
                    lse);
  }

  int32_t error() override { return 0; }
  void wait(Stream) override {}
  PagedAttentionPlan::Words words() const override { return {}; }

 private:
  const TensorView* times_of(const TensorView* times, int64_t tokens) {
    if (times == nullptr) return nullptr;
    times_ = first_rows(*times, tokens);
    return &times_;
  }

  int64_t requests_ = 0, width_ = 0;
  std::vector<int32_t> table_, ends_{0, 0}, lengths_{0}, start_;
  TensorView times_;
};

void raise(const Check& check, int32_t error, int64_t pool) {
  if (error == 0) return;
  const std::string request = std::to_string(error & PagedError::kRequest);
  if ((error & PagedError::kBadPage) != 0) {
    check.fail("page_table[" + request +
               "] has come to hold, on the device, a page that is not in " + "the pool of " +
               std::to_string(pool));
  }
  check.fail("the tokens of request " + request + " are more than the launch was captured with");
}

}  // namespace

PagedAttentionPlan::PagedAttentionPlan(const TensorView& k_pages, const PagedLimits& limits,
                                       const PagedPlanOptions& options, Stream stream)
    : pages_(k_pages), limits_(limits), options_(options) {
  const Check check(kAttention, k_pages);
  check.on_device(k_pages, "k_pages");
  if (k_pages.ndim != 4 || k_pages.shape[1] < 1 || k_pages.shape[2] < 1 || options.heads < 1 ||
      options.heads % k_pages.shape[1] != 0) {
    check.fail("k_pages must be [P, Hkv, slot, D] with Hkv dividing " +
               std::to_string(options.heads) + ", got " + describe(k_pages));
  }
  check.require(limits.requests > 0 && limits.pages > 0 && limits.queries > 0 &&
                    limits.tokens >= 0 && limits.splits > 0,
                "the limits of a plan must be positive");
  check.require(options.window_left >= -1, "window must be >= -1 on its left");
  check.require(options.window_right >= -1, "window must be >= -1 on its right");
  if (limits_.tokens == 0) limits_.tokens = limits.requests * limits.queries;
  if constexpr (kCuda) {
    if (on_cuda(k_pages)) {
      backend_ = cuda::paged_plan(k_pages, limits_, options, stream);
      return;
    }
  }
  backend_ = std::make_unique<HeldBatch>();
}

PagedAttentionPlan::~PagedAttentionPlan() = default;

void PagedAttentionPlan::update(const TensorView& page_table, const TensorView& cu_seqlens,
                                const TensorView& kv_lengths, Stream stream) {
  const Check check(kAttention, pages_);
  raise(check, backend_->error(), pages_.shape[0]);
  const int64_t requests = kv_lengths.ndim == 1 ? kv_lengths.shape[0] : 0;
  check.metadata(kv_lengths, "kv_lengths", DType::i32, {requests});
  check.metadata(cu_seqlens, "cu_seqlens_q", DType::i32, {requests + 1});
  const int32_t *ends = cu_seqlens.as<int32_t>(), *lengths = kv_lengths.as<int32_t>();
  check.offsets(cu_seqlens, "cu_seqlens_q", DType::i32, ends[requests]);
  check_table(check, page_table, requests);
  for (int64_t n = 0; n < requests; ++n) {
    check_tokens(check, page_table, pages_, n, 0, lengths[n], "kv_lengths");
    if (ends[n + 1] - ends[n] > limits_.queries) {
      check.fail("cu_seqlens_q gives request " + std::to_string(n) + " " +
                 std::to_string(ends[n + 1] - ends[n]) + " tokens, the plan's limit is " +
                 std::to_string(limits_.queries));
    }
    const int64_t used = (lengths[n] + pages_.shape[2] - 1) / pages_.shape[2];
    if (used > limits_.pages) {
      check.fail("kv_lengths[" + std::to_string(n) + "] = " + std::to_string(lengths[n]) +
                 " needs " + std::to_string(used) + " pages, the plan's limit is " +
                 std::to_string(limits_.pages));
    }
  }
  if (requests > limits_.requests || ends[requests] > limits_.tokens) {
    check.fail("the plan's limits are " + std::to_string(limits_.requests) + " requests and " +
               std::to_string(limits_.tokens) + " tokens, got " + std::to_string(requests) +
               " and " + std::to_string(ends[requests]));
  }
  backend_->update(page_table, cu_seqlens, kv_lengths, stream);
  tokens_ = ends[requests];
  without_start_ = -1;
  for (int64_t n = 0; n < requests; ++n) {
    if (lengths[n] < ends[n + 1] - ends[n]) without_start_ = n;
  }
}

void PagedAttentionPlan::append(const TensorView& k, const TensorView& v, const TensorView& k_pages,
                                const TensorView& v_pages, const TensorView* times,
                                const TensorView* inv_freq, bool interleaved,
                                const TensorView* k_scales, const TensorView* v_scales,
                                Stream stream) {
  const Check check(kAppend, k);
  const PagedTokens tokens{k,        v,           k_pages,  v_pages, times,
                           inv_freq, interleaved, k_scales, v_scales};
  check_append(check, tokens);
  check_like_plan(check, k_pages, pages_);
  check.require(k.shape[0] >= tokens_, "k must have a row for each token of the plan's batch");
  if (without_start_ >= 0) {
    check.fail("request " + std::to_string(without_start_) +
               " has more new tokens than kv_lengths");
  }
  backend_->append(tokens, stream);
}

void PagedAttentionPlan::attend(const TensorView& q, const TensorView& k_pages,
                                const TensorView& v_pages, PagedAttentionOptions options,
                                const TensorView& out, const TensorView& lse, Stream stream) {
  const Check check(kAttention, q);
  options.causal = options_.causal;
  options.window_left = options_.window_left;
  options.window_right = options_.window_right;
  check_attention(check, q, k_pages, v_pages, options, out, lse);
  check_like_plan(check, k_pages, pages_);
  check.require(q.shape[1] == options_.heads, "q must have the plan's number of heads");
  check.require(q.shape[0] >= tokens_, "q must have a row for each token of the plan's batch");
  if (q.numel() > 0) backend_->attend(q, k_pages, v_pages, options, out, lse, stream);
}

PagedAttentionPlan::Words PagedAttentionPlan::words() const { return backend_->words(); }

void PagedAttentionPlan::check(Stream stream) {
  backend_->wait(stream);
  raise(Check(kAttention, pages_), backend_->error(), pages_.shape[0]);
}

}  // namespace afnext
