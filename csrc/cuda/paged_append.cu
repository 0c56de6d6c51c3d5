// New keys and values to their pages, keys turned on the way.
//
// Bytes: a row read and a row written, 16 bits or 8. A step appends a few rows a request, a
// kilobyte each at 4 heads of 128, so that latency is what it costs: a warp takes a row, a token's
// rows all go at once, and where they go is looked up while the kernel before still runs. A phase
// costs some 40 instructions, a row of 128 channels two a lane: less than its memory takes. A lane
// holds pairs 32 apart: an access of the warp is 64 neighbouring bytes in 16 bits. 32 to 56
// registers, no shared memory: 9 blocks of 4 warps a multiprocessor or more.
#include <algorithm>
#include <vector>

#include "cuda/arch/griddepcontrol.h"
#include "cuda/dispatch.h"
#include "cuda/paged_append.h"
#include "cuda/paged_batch.h"
#include "cuda/paged_params.h"

namespace afnext::cuda {
namespace {

constexpr int kWarps = 4;

struct Params {
  PageParams pages;
  const void *k, *v;
  void *k_pages, *v_pages;
  float *k_scales, *v_scales;
  Times times;
  const float* inv_freq;
  Divider rows;                              // of a token: a key and a value for each KV head
  int64_t k_token, k_head, v_token, v_head;  // strides, elements
  int32_t half, query_tokens;
  bool interleaved;
};

// The last request that begins at or before a token: empty ones are passed over.
AFNEXT_DEVICE int request_of(const PagedRequest* requests, int count, int token) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (requests[middle].first_query <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// NaN wins, so that it shows.
AFNEXT_DEVICE float larger(float peak, float x) { return x > peak || x != x ? x : peak; }
AFNEXT_DEVICE float largest_of_lanes(float x) {
#pragma unroll
  for (int by = arch::kWarp / 2; by > 0; by /= 2) {
    x = larger(x, __shfl_xor_sync(arch::kAllLanes, x, by));
  }
  return x;
}

// What a row is multiplied by. Of one so small that this is no number (in its scale a value has no
// bits to be told by), all values are 0: 0 times infinity would be a NaN.
AFNEXT_DEVICE float inverse_of(float peak, float most) {
  const float inverse = peak > 0.0f ? most / peak : 0.0f;
  return inverse < INFINITY ? inverse : 0.0f;
}

template <typename T>
struct Quantizer {
  AFNEXT_DEVICE explicit Quantizer(float) {}
  AFNEXT_DEVICE T operator()(float x) const { return arch::rounded<T>(x); }
};
template <>
struct Quantizer<int8_t> {
  static constexpr float kMost = 127.0f;
  float inverse;
  AFNEXT_DEVICE explicit Quantizer(float peak) : inverse(inverse_of(peak, kMost)) {}
  AFNEXT_DEVICE int8_t operator()(float x) const {
    const float whole = rintf(x * inverse);
    return static_cast<int8_t>(whole >= -kMost && whole <= kMost ? whole : 0.0f);
  }
};
template <>
struct Quantizer<e4m3> {
  static constexpr float kMost = 448.0f;
  float inverse;
  AFNEXT_DEVICE explicit Quantizer(float peak) : inverse(inverse_of(peak, kMost)) {}
  AFNEXT_DEVICE e4m3 operator()(float x) const { return arch::to_e4m3(x * inverse); }
};

// A row of a new token, and where it goes.
struct NewRow {
  int token, head, position;
  bool is_key;
  int page = -1;  // none: nothing to do

  AFNEXT_DEVICE NewRow(const Params& p, int tokens, int work) {
    token = p.rows.divide(work);
    is_key = p.rows.remainder(work) < p.pages.kv_heads;
    head = p.rows.remainder(work) - (is_key ? 0 : p.pages.kv_heads);
    if (token >= tokens) return;
    const auto* header = reinterpret_cast<const PagedHeader*>(p.pages.words);
    const auto* requests =
        reinterpret_cast<const PagedRequest*>(p.pages.words + header->first_request);
    const int n = request_of(requests, header->requests, token);
    const PagedRequest request = requests[n];
    position = request.start + token - request.first_query;
    if (position >= 0) page = p.pages.page(request.pages, position, n);
  }
};

// kPairs: of a lane, 32 apart.
template <typename T, typename Page, int kPairs>
AFNEXT_DEVICE void append(const Params& p, const NewRow& row) {
  const int lane = threadIdx.x % arch::kWarp, dim = p.pages.dim;
  const bool is_key = row.is_key, turned = is_key && p.half > 0;
  const T* from = static_cast<const T*>(is_key ? p.k : p.v) +
                  row.token * (is_key ? p.k_token : p.v_token) +
                  row.head * (is_key ? p.k_head : p.v_head);
  float a[kPairs], b[kPairs], peak = 0.0f;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const RotatedPair at(lane + i * arch::kWarp, turned ? p.half : 0, p.interleaved);
    a[i] = at.first < dim ? arch::to_float(from[at.first]) : 0.0f;
    b[i] = at.second < dim ? arch::to_float(from[at.second]) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane + i * arch::kWarp;
    if (turned && pair < p.half) {
      turn(sincos_of(p.times[row.token], p.inv_freq[pair]), &a[i], &b[i]);
    }
    peak = larger(larger(peak, fabsf(a[i])), fabsf(b[i]));
  }
  const int64_t place = p.pages.row(row.page, row.head, row.position);
  if constexpr (sizeof(Page) == 1) {
    peak = largest_of_lanes(peak);
    float* scales = is_key ? p.k_scales : p.v_scales;
    if (lane == 0) scales[place] = peak / Quantizer<Page>::kMost;
  }
  const Quantizer<Page> quantize(peak);
  Page* to = static_cast<Page*>(is_key ? p.k_pages : p.v_pages) + place * dim;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const RotatedPair at(lane + i * arch::kWarp, turned ? p.half : 0, p.interleaved);
    if (at.first < dim) to[at.first] = quantize(a[i]);
    if (at.second < dim) to[at.second] = quantize(b[i]);
  }
}

template <typename T, typename Page, int kPairs>
__global__ void __launch_bounds__(kWarps* arch::kWarp)
    paged_append_kernel(const __grid_constant__ Params p) {
  const auto* header = reinterpret_cast<const PagedHeader*>(p.pages.words);
  const int tokens = header->tokens < p.query_tokens ? header->tokens : p.query_tokens;
  int work = blockIdx.x * kWarps + threadIdx.x / arch::kWarp;
  NewRow row(p, tokens, work);  // a plan's words are no kernel's
  arch::griddepcontrol_wait();
  arch::griddepcontrol_launch_dependents();
  if (tokens < header->tokens && threadIdx.x == 0) {
    const auto* requests =
        reinterpret_cast<const PagedRequest*>(p.pages.words + header->first_request);
    p.pages.fail(PagedError::kTooManyTokens |
                 request_of(requests, header->requests, p.query_tokens));
  }
#pragma unroll 1
  while (row.token < tokens) {
    if (row.page >= 0) append<T, Page, kPairs>(p, row);
    work += gridDim.x * kWarps;
    row = NewRow(p, tokens, work);
  }
}

template <typename T, typename Page>
void run(const Call& call, const Params& p) {
  const int64_t warps = 2 * static_cast<int64_t>(p.query_tokens) * p.pages.kv_heads;
  constexpr int64_t kBlocks = 16;  // of an SM
  const dim3 grid(static_cast<unsigned>(
      std::min((warps + kWarps - 1) / kWarps, kBlocks * call.device().multiprocessors)));
  constexpr int kThreads = kWarps * arch::kWarp;
  if (p.pages.dim <= 2 * 2 * arch::kWarp) {
    call.launch_early<paged_append_kernel<T, Page, 2>>(grid, kThreads, 0, p);
  } else {
    call.launch_early<paged_append_kernel<T, Page, 4>>(grid, kThreads, 0, p);
  }
}

}  // namespace

void run_paged_append(const Call& call, const PagedBatch& batch, const PagedTokens& tokens) {
  const TensorView &k = tokens.k, &v = tokens.v;
  const int64_t* pages = tokens.k_pages.shape;
  const bool turned = tokens.inv_freq != nullptr && tokens.inv_freq->last() > 0;
  const Params p{
      {batch.words, batch.error, static_cast<int32_t>(pages[0]), static_cast<int32_t>(pages[1]),
       static_cast<int32_t>(pages[3]), Divider(static_cast<uint32_t>(pages[2]))},
      k.data,
      v.data,
      tokens.k_pages.data,
      tokens.v_pages.data,
      tokens.k_scales ? tokens.k_scales->as<float>() : nullptr,
      tokens.v_scales ? tokens.v_scales->as<float>() : nullptr,
      turned ? Times{tokens.times->data, tokens.times->dtype} : Times{},
      turned ? tokens.inv_freq->as<float>() : nullptr,
      Divider(static_cast<uint32_t>(2 * pages[1])),
      k.stride[0],
      k.stride[1],
      v.stride[0],
      v.stride[1],
      static_cast<int32_t>(turned ? tokens.inv_freq->last() : 0),
      static_cast<int32_t>(k.shape[0]),
      tokens.interleaved};
  with_dtype(k.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (tokens.k_pages.dtype == DType::i8) {
      run<T, int8_t>(call, p);
    } else if (tokens.k_pages.dtype == DType::f8e4m3) {
      run<T, e4m3>(call, p);
    } else {
      run<T, T>(call, p);
    }
  });
}

void paged_append(const PagedTokens& tokens, const TensorView& page_table,
                  const TensorView& cu_seqlens, const TensorView& start, Stream stream) {
  const Call call("paged_append", tokens.k, stream);
  const int32_t *ends = cu_seqlens.as<int32_t>(), *starts = start.as<int32_t>();
  std::vector<int32_t> lengths(static_cast<size_t>(start.shape[0]));
  for (size_t n = 0; n < lengths.size(); ++n) {  // a request without new tokens touches no page
    const int32_t added = ends[n + 1] - ends[n];
    lengths[n] = added > 0 ? starts[n] + added : 0;
  }
  TensorView kv_lengths = start;
  kv_lengths.data = lengths.data();
  const int64_t* pages = tokens.k_pages.shape;
  PagedWork work;
  work.fill({1, pages[1], pages[2], -1, -1, 1}, page_table, cu_seqlens, kv_lengths, false);
  const Scratch words(call, work.bytes());
  call.upload(words.as<void>(), work.words(), work.bytes());
  run_paged_append(call, {words.as<int32_t>(), nullptr, nullptr, work.counts()}, tokens);
}

}  // namespace afnext::cuda
