// Paged attention without tensor cores, for what they do not take: float32, head dims that are no
// multiple of 16 bytes, rows that are not aligned.
//
// A warp takes a row: 32 keys at a time, a lane a key for the scores, a lane a channel for the
// values. Keys come from the L1, where all rows of an item meet; the arithmetic is the limit.
//
// Per key and row 4 D FLOPs and 2 D elements of pages. 70 to 79 registers (a lane keeps 8 of at
// most 256 channels), 4 KB of shared memory for queries: six blocks of 4 warps a multiprocessor or
// more.
#pragma once

#include "cuda/arch/griddepcontrol.h"
#include "cuda/paged_params.h"

namespace afnext::cuda {

constexpr int kPlainWarps = 4;
constexpr int kPlainDim = 256;

struct PlainShared {
  float q[kPlainWarps][kPlainDim];
};

// The query of a row, turned, in shared memory for its warp.
template <typename T>
AFNEXT_DEVICE void load_query(const PagedAttentionParams& p, const PagedRows& rows, int row,
                              float* shared) {
  const int token = rows.token(row), dim = p.pages.dim;
  const T* q = static_cast<const T*>(p.q) + token * p.q_token + rows.q_head(row) * p.q_head;
  __syncwarp();
  for (int pair = threadIdx.x % arch::kWarp; 2 * pair < dim; pair += arch::kWarp) {
    const RotatedPair at(pair, p.half, p.interleaved);
    float a = arch::to_float(q[at.first]), b = at.second < dim ? arch::to_float(q[at.second]) : 0;
    if (pair < p.half) {
      turn(sincos_of(p.times[token], p.inv_freq[pair]), &a, &b);
      a = arch::to_float(arch::rounded<T>(a));
      b = arch::to_float(arch::rounded<T>(b));
    }
    shared[at.first] = a;
    if (at.second < dim) shared[at.second] = b;
  }
  __syncwarp();
}

template <typename T, typename Page>
AFNEXT_DEVICE void attend_row(const PagedAttentionParams& p, const PagedItem& item, int head,
                              const PagedRows& rows, int row, const float* q) {
  constexpr bool kBytes = sizeof(Page) == 1;
  constexpr int kChannels = kPlainDim / arch::kWarp;
  const int lane = threadIdx.x % arch::kWarp, dim = p.pages.dim;
  const int low = rows.low(row), high = rows.high(row);
  const auto *keys = static_cast<const Page*>(p.k_pages),
             *values = static_cast<const Page*>(p.v_pages);
  float top = -INFINITY, sum = 0.0f, out[kChannels] = {};
#pragma unroll 1
  for (int first = low; first < high; first += arch::kWarp) {
    const int key = first + lane;
    const int page = key < high ? p.pages.page(item.pages, key, item.request) : -1;
    const int64_t at = page < 0 ? -1 : p.pages.row(page, head, key);
    float score = key < high ? 0.0f : -INFINITY, value_scale = 1.0f;
    if (at >= 0) {
      const Page* k = keys + at * dim;
#pragma unroll 4
      for (int i = 0; i < dim; ++i) score += q[i] * arch::to_float(k[i]);
      score *= p.scale;
      if constexpr (kBytes) {
        score *= p.k_scales[at];
        value_scale = p.v_scales[at];
      }
    }
    const float new_top = fmaxf(top, arch::max_lanes(score));
    const float footing = new_top == -INFINITY ? 0.0f : new_top;
    const float factor = arch::exp2_approx(top - footing);
    const float weight = arch::exp2_approx(score - footing);
    top = new_top;
    sum = sum * factor + weight;
#pragma unroll
    for (float& channel : out) channel *= factor;
    const int count = high - first < arch::kWarp ? high - first : arch::kWarp;
    for (int j = 0; j < count; ++j) {
      const int64_t from = __shfl_sync(arch::kAllLanes, at, j);
      const float scaled = __shfl_sync(arch::kAllLanes, weight * value_scale, j);
      if (from < 0) continue;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        const int channel = lane + i * arch::kWarp;
        if (channel < dim) out[i] += scaled * arch::to_float(values[from * dim + channel]);
      }
    }
  }
  sum = arch::sum_lanes(sum);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum, lse = log_of(top, sum);
  const int token = rows.token(row), q_head = rows.q_head(row);
  const bool part = item.partial >= 0;
  const int64_t to =
      part ? item.partial + static_cast<int64_t>(head) * item.partial_heads + item.first_row + row
           : static_cast<int64_t>(token) * p.pages.kv_heads * p.group.divisor() + q_head;
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    const int channel = lane + i * arch::kWarp;
    if (channel >= dim) continue;
    if (part) {
      p.partial_out[to * p.partial_dim + channel] = out[i] * inverse;
    } else {
      static_cast<T*>(p.out)[to * dim + channel] = arch::rounded<T>(out[i] * inverse);
    }
  }
  if (lane > 0) return;
  if (part) {
    p.partial_lse[to] = lse;
  } else {
    p.lse[static_cast<int64_t>(q_head) * p.query_tokens + token] = lse;
  }
}

template <typename T, typename Page>
__global__ void __launch_bounds__(kPlainWarps* arch::kWarp, 4)
    paged_attention_plain_kernel(const __grid_constant__ PagedAttentionParams p) {
  auto& shared = arch::shared_memory<PlainShared>();
  const auto* header = reinterpret_cast<const PagedHeader*>(p.pages.words);
  const auto* items = reinterpret_cast<const PagedItem*>(header + 1);
  const int warp = threadIdx.x / arch::kWarp;
  arch::griddepcontrol_wait();
  arch::griddepcontrol_launch_dependents();
#pragma unroll 1
  for (int work = blockIdx.x; work < (header->small + header->large) * p.pages.kv_heads;
       work += gridDim.x) {
    const int index = work / p.pages.kv_heads, head = work % p.pages.kv_heads;
    const PagedItem item = items[index];
    const PagedRows rows(p, item, head, index < header->small ? kSmallRows : kLargeRows);
#pragma unroll 1
    for (int row = warp; row < rows.count; row += kPlainWarps) {
      load_query<T>(p, rows, row, shared.q[warp]);
      attend_row<T, Page>(p, item, head, rows, row, shared.q[warp]);
    }
  }
}

}  // namespace afnext::cuda
