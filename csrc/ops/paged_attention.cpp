#include "afnext/paged_attention.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cpu/attention.h"
#include "cpu/paged_attention.h"
#include "cpu/parallel.h"
#include "cuda/backend.h"
#include "cuda/paged_attention.h"
#include "ops/pages.h"

namespace afnext {

constinit cpu::KernelTable<cpu::PagedAttentionArgs> cpu::paged_attention_kernels;

namespace {

constexpr int64_t kProductsPerThread = 1 << 18;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t window_side(int64_t width) {
  return width < 0 ? cpu::Band::kUnlimited : std::min(width, cpu::Band::kUnlimited);
}

// Requests, and the pieces that threads take: by rows, and by keys too where the rows of a request
// are few, so that one long decode keeps every thread busy.
class Plan {
 public:
  Plan(const TensorView& q, const TensorView& k_pages, const TensorView& page_table,
       const TensorView& cu_seqlens_q, const TensorView& kv_lengths,
       const PagedAttentionOptions& options)
      : group_(q.shape[1] / k_pages.shape[1]), kv_heads_(k_pages.shape[1]) {
    const int32_t* ends = cu_seqlens_q.as<int32_t>();
    const int64_t right = options.causal ? 0 : options.window_right;
    const int64_t count = kv_lengths.shape[0];
    requests.reserve(count);
    for (int64_t n = 0; n < count; ++n) {
      const cpu::Band band{ends[n + 1] - ends[n], kv_lengths.as<int32_t>()[n],
                           window_side(options.window_left), window_side(right)};
      requests.push_back(
          {ends[n], page_table.as<int32_t>() + n * page_table.stride[0], band, 1, partials});
      const int64_t rows = band.queries * group_;
      if (rows > cpu::kPagedItemRows) {
        add_chunk(n);
      } else if (rows > 0) {
        add_items(n);
      }
    }
    if (items.size() > 1) {  // a sort takes memory even then
      std::stable_sort(items.begin(), items.end(),
                       [](const auto& a, const auto& b) { return work(a) > work(b); });
    }
    for (const cpu::PagedItem& item : items) products_ += work(item) * q.shape[2];
  }

  int64_t threads() const {
    const int64_t most = std::min<int64_t>(cpu::num_threads(), static_cast<int64_t>(items.size()));
    return std::min(most, products_ / kProductsPerThread + 1);
  }

  std::vector<cpu::PagedRequest> requests;
  std::vector<cpu::PagedItem> items;
  // Requests of many queries, which attention's kernel takes panel by panel.
  std::vector<cpu::AttentionSequence> chunks;
  std::vector<cpu::AttentionItem> chunk_items;
  int64_t partials = 0;

 private:
  static int64_t work(const cpu::PagedItem& item) {
    return (item.end_row - item.first_row) * (item.end_key - item.first_key);
  }

  void add_items(int64_t n) {
    cpu::PagedRequest& request = requests[n];
    const cpu::Band& band = request.band;
    const int64_t rows = band.queries * group_;
    const int64_t first = band.first(0), end = std::max(first, band.end(band.queries - 1));
    const int64_t begin = first / cpu::kPartKeys * cpu::kPartKeys;
    if (end > begin) request.parts = divide_up(end - begin, cpu::kPartKeys);
    if (request.parts > 1) partials += kv_heads_ * request.parts * rows;
    // Heads lie side by side in a page: so do the items that read it.
    for (int64_t part = 0; part < request.parts; ++part) {
      for (int64_t head = 0; head < kv_heads_; ++head) {
        const int64_t part_begin = begin + part * cpu::kPartKeys;
        items.push_back({n, head, 0, rows, std::max(first, part_begin),
                         std::min(end, part_begin + cpu::kPartKeys), part});
      }
    }
  }

  // The last rows see the most keys and come first.
  void add_chunk(int64_t n) {
    const cpu::PagedRequest& request = requests[n];
    const auto sequence = static_cast<int64_t>(chunks.size());
    chunks.push_back(
        {request.first_query, 0, request.band.keys, 0, 0, request.band, request.pages});
    const int64_t rows = request.band.queries * group_;
    for (int64_t row = (rows - 1) / cpu::kItemRows * cpu::kItemRows; row >= 0;
         row -= cpu::kItemRows) {
      for (int64_t head = 0; head < kv_heads_; ++head)
        chunk_items.push_back({sequence, head, row, std::min(row + cpu::kItemRows, rows)});
    }
  }

  int64_t group_, kv_heads_;
  int64_t products_ = 0;
};

}  // namespace

void paged_attention(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                     const TensorView& page_table, const TensorView& cu_seqlens_q,
                     const TensorView& kv_lengths, const PagedAttentionOptions& options,
                     const TensorView& out, const TensorView& lse, Stream stream) {
  const Check check("paged_attention", q);
  check_attention(check, q, k_pages, v_pages, options, out, lse);
  check.offsets(cu_seqlens_q, "cu_seqlens_q", DType::i32, q.shape[0]);
  const int64_t requests = cu_seqlens_q.shape[0] - 1;
  check.metadata(kv_lengths, "kv_lengths", DType::i32, {requests});
  check_table(check, page_table, requests);
  const int64_t half = options.inv_freq ? options.inv_freq->last() : 0;
  for (int64_t n = 0; n < requests; ++n) {
    check_tokens(check, page_table, k_pages, n, 0, kv_lengths.as<int32_t>()[n], "kv_lengths");
  }
  if (q.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(q)) {
      return cuda::paged_attention(q, k_pages, v_pages, page_table, cu_seqlens_q, kv_lengths,
                                   options, out, lse, stream);
    }
  }

  const Plan plan(q, k_pages, page_table, cu_seqlens_q, kv_lengths, options);
  const float* k_scales = options.k_scales ? options.k_scales->as<float>() : nullptr;
  const float* v_scales = options.v_scales ? options.v_scales->as<float>() : nullptr;
  if (!plan.chunks.empty()) {
    const cpu::Heads k{k_pages.data, k_pages.shape[3], 0}, v{v_pages.data, k_pages.shape[3], 0};
    const cpu::AttentionProblem problem{q.dtype,
                                        q.shape[2],
                                        q.shape[1] / k_pages.shape[1],
                                        k_pages.shape[1],
                                        q.shape[0],
                                        0,
                                        {q.data, q.stride[0], q.stride[1]},
                                        k,
                                        v,
                                        half > 0 ? options.times->as<float>() : nullptr,
                                        nullptr,
                                        half > 0 ? options.inv_freq->as<float>() : nullptr,
                                        half,
                                        options.interleaved,
                                        nullptr,
                                        static_cast<float>(options.scale),
                                        plan.chunks.data(),
                                        k_pages.shape[2],
                                        k_scales,
                                        v_scales};
    cpu::run_attention({problem, plan.chunk_items.data(),
                        static_cast<int64_t>(plan.chunk_items.size()), out.data,
                        out.dtype == DType::f32, lse.as<float>()});
  }
  if (plan.items.empty()) return;
  const std::unique_ptr<float[]> partials(new float[plan.partials * (q.shape[2] + 1)]);
  cpu::paged_attention_kernels({q.dtype,
                                q.shape[2],
                                q.shape[1] / k_pages.shape[1],
                                k_pages.shape[1],
                                k_pages.shape[2],
                                q.shape[0],
                                {q.data, q.stride[0], q.stride[1]},
                                k_pages.data,
                                v_pages.data,
                                k_scales,
                                v_scales,
                                half > 0 ? options.times->as<float>() : nullptr,
                                half > 0 ? options.inv_freq->as<float>() : nullptr,
                                half,
                                options.interleaved,
                                static_cast<float>(options.scale),
                                plan.requests.data(),
                                static_cast<int64_t>(plan.requests.size()),
                                plan.items.data(),
                                static_cast<int64_t>(plan.items.size()),
                                plan.threads(),
                                partials.get(),
                                partials.get() + plan.partials * q.shape[2],
                                out.data,
                                lse.as<float>()});
}

}  // namespace afnext
