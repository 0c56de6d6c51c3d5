// Attention in float32, a warp a row: tensor cores would round its operands to 10 bits. It serves
// tests and small models; its time is that of fp32 arithmetic and of reading k through the L1.
//
// Per key and row 4 D FLOPs and 8 D bytes, out of the L1 for all but one of the 8 rows of a block,
// which share a KV head: that is why they are a block. 101 registers (84 on sm_90) and 8 KB of
// shared memory for q: two blocks of 256 threads a multiprocessor.
#pragma once

#include "cuda/arch/warp.h"
#include "cuda/attention_kernel.h"

namespace afnext::cuda {

constexpr int kRowWarps = 8, kRowThreads = kRowWarps * arch::kWarp, kMaxHeadDim = 256;

struct AttentionRowsShared {
  float q[kRowWarps][kMaxHeadDim];
};

__global__ void __launch_bounds__(kRowThreads) attention_rows_kernel(const AttentionParams p) {
  const AttentionItem item = item_of(p, static_cast<int>(blockIdx.x));
  const Band& band = item.sequence.band;
  const int warp = static_cast<int>(threadIdx.x) / arch::kWarp;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int row = item.first_row + warp;
  if (row >= band.queries * p.group) return;
  const int64_t token = item.sequence.first_query + row / p.group;
  const int head = item.kv_head * p.group + row % p.group;
  float* q = arch::shared_memory<AttentionRowsShared>().q[warp];
  const float* from = static_cast<const float*>(p.q.data) + p.q.at(token, head);
  const int half = p.inv_freq != nullptr ? p.half : 0;
  for (int pair = lane; 2 * pair < p.dim; pair += arch::kWarp) {
    const RotatedPair at(pair, half, p.interleaved);
    float x = from[at.first], y = at.second < p.dim ? from[at.second] : 0.0f;
    if (pair < half) turn(sincos_of(p.times_q[token], p.inv_freq[pair]), &x, &y);
    q[at.first] = x;
    if (at.second < p.dim) q[at.second] = y;
  }
  __syncwarp();
  constexpr int kKept = kMaxHeadDim / arch::kWarp;
  float sums[kKept] = {};
  float max = -INFINITY, total = 0;
  const auto* k = static_cast<const float*>(p.k.data);
  const auto* v = static_cast<const float*>(p.v.data);
  const int end = band.end(row / p.group);
#pragma unroll 1
  for (int key = band.first(row / p.group); key < end; key += arch::kWarp) {
    const int64_t first = int64_t{item.sequence.first_key} + key;
    float score = -INFINITY;
    if (key + lane < end) {
      const float* at = k + p.k.at(first + lane, item.kv_head);
      score = 0;
#pragma unroll 4
      for (int d = 0; d < p.dim; ++d) score = fmaf(q[d], at[d], score);
      score *= p.scale * kLog2E;
    }
    const float now = fmaxf(max, arch::max_lanes(score));
    const float base = now == -INFINITY ? 0.0f : now;
    const float weight = exp2f(score - base), shrink = exp2f(max - base);
    max = now;
    total = fmaf(total, shrink, weight);
#pragma unroll
    for (float& sum : sums) sum *= shrink;
    const int count = min(end - key, arch::kWarp);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const float w = __shfl_sync(arch::kAllLanes, weight, i);
      const float* at = v + p.v.at(first + i, item.kv_head);
#pragma unroll
      for (int c = 0; c < kKept; ++c) {
        const int d = lane + arch::kWarp * c;
        if (d < p.dim) sums[c] = fmaf(w, at[d], sums[c]);
      }
    }
  }
  total = arch::sum_lanes(total);
  const float factor = total == 0.0f ? 0.0f : 1.0f / total;
  float* out = static_cast<float*>(p.out) + (token * p.group * p.kv_heads + head) * p.dim;
#pragma unroll
  for (int c = 0; c < kKept; ++c) {
    const int d = lane + arch::kWarp * c;
    if (d < p.dim) out[d] = factor * sums[c];
  }
  if (lane == 0) {
    p.lse[int64_t{head} * p.query_tokens + token] =
        total == 0.0f ? -INFINITY : (max + log2f(total)) * kLn2;
  }
}

}  // namespace afnext::cuda
