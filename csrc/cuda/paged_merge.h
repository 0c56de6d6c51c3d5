// Merges the parts of rows whose keys were split.
//
// A part of a row is 4 (D + 1) bytes that the kernel before has just written, most of them still in
// the L2: latency is what this costs. A block takes a row, its warps every kMergeWarps-th part, and
// a lane asks for four channels of kBatch parts at once. The order is that of the parts, always.
// FLOPs: 2 D a part. 64 to 72 registers, most of them the batch (8 x 16 bytes a lane), 4 KB of
// shared memory: 7 blocks of 4 warps a multiprocessor.
#pragma once

#include "cuda/arch/griddepcontrol.h"
#include "cuda/paged_params.h"

namespace afnext::cuda {

constexpr int kMergeWarps = 4;
constexpr int kMergeDim = 256;

struct MergeShared {
  float out[kMergeWarps][kMergeDim];
  float top[kMergeWarps], sum[kMergeWarps];
};

// kVectors: of four channels, of a lane.
template <int kVectors>
class MergedRow {
 public:
  // Parts `part`, `part` + kMergeWarps, ... below `parts`, `stride` rows apart.
  AFNEXT_DEVICE MergedRow(const PagedAttentionParams& p, int64_t row, int64_t stride, int part,
                          int parts) {
    constexpr int kBatch = 8 / kVectors;
    const int channel = threadIdx.x % arch::kWarp * 4;
    const int64_t floats = p.partial_dim;
#pragma unroll 1
    for (; part < parts; part += kBatch * kMergeWarps) {
      float lse[kBatch];
      float4 values[kBatch][kVectors];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const bool there = part + i * kMergeWarps < parts;
        const int64_t at = row + (there ? part + i * kMergeWarps : part) * stride;
        lse[i] = there ? p.partial_lse[at] * kLog2E : -INFINITY;
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
          const int of = channel + j * 4 * arch::kWarp;
          values[i][j] = {};
          if (there && of < p.pages.dim) {
            values[i][j] = *reinterpret_cast<const float4*>(p.partial_out + at * floats + of);
          }
        }
      }
      add(lse, values);
    }
  }

  AFNEXT_DEVICE void store(MergeShared& shared, int warp) const {
    const int lane = threadIdx.x % arch::kWarp;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      *reinterpret_cast<float4*>(shared.out[warp] + 4 * (lane + j * arch::kWarp)) = out_[j];
    }
    if (lane == 0) {
      shared.top[warp] = top_;
      shared.sum[warp] = sum_;
    }
  }

 private:
  template <int kBatch>
  AFNEXT_DEVICE void add(const float (&lse)[kBatch], const float4 (&values)[kBatch][kVectors]) {
    float top = top_;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) top = fmaxf(top, lse[i]);
    const float footing = top == -INFINITY ? 0.0f : top;
    const float factor = arch::exp2_approx(top_ - footing);
    top_ = top;
    sum_ *= factor;
#pragma unroll
    for (float4& out : out_) out = {out.x * factor, out.y * factor, out.z * factor, out.w * factor};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = arch::exp2_approx(lse[i] - footing);
      sum_ += weight;
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        const float4& value = values[i][j];
        out_[j].x += weight * value.x;
        out_[j].y += weight * value.y;
        out_[j].z += weight * value.z;
        out_[j].w += weight * value.w;
      }
    }
  }

  float top_ = -INFINITY, sum_ = 0.0f;
  float4 out_[kVectors] = {};
};

template <typename T, int kVectors>
__global__ void __launch_bounds__(kMergeWarps* arch::kWarp)
    paged_merge_kernel(const __grid_constant__ PagedAttentionParams p) {
  auto& shared = arch::shared_memory<MergeShared>();
  const auto* header = reinterpret_cast<const PagedHeader*>(p.pages.words);
  const auto* merges = reinterpret_cast<const PagedMerge*>(p.pages.words + header->first_merge);
  const int head = blockIdx.y, warp = threadIdx.x / arch::kWarp, group = p.group.divisor();
  const int count = header->merges;
  int index = blockIdx.z;
  PagedMerge merge = index < count ? merges[index] : PagedMerge{};
  arch::griddepcontrol_wait();
  arch::griddepcontrol_launch_dependents();
#pragma unroll 1
  for (; index < count; index += gridDim.z) {
    if (index != blockIdx.z) merge = merges[index];
    const int row = merge.first_row + blockIdx.x, rows = merge.queries * group;
    if (row >= rows || merge.first_query + merge.queries > p.query_tokens) continue;
    const MergedRow<kVectors> merged(
        p, merge.partial + static_cast<int64_t>(head) * merge.parts * rows + row, rows, warp,
        merge.parts);
    merged.store(shared, warp);
    __syncthreads();
    float top = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kMergeWarps; ++w) top = fmaxf(top, shared.top[w]);
    const float footing = top == -INFINITY ? 0.0f : top;
    float weights[kMergeWarps];
#pragma unroll
    for (int w = 0; w < kMergeWarps; ++w) {
      weights[w] = arch::exp2_approx(shared.top[w] - footing);
      sum += weights[w] * shared.sum[w];
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const int token = merge.first_query + p.group.divide(row);
    const int q_heads = p.pages.kv_heads * group, q_head = head * group + p.group.remainder(row);
    T* to = static_cast<T*>(p.out) + (static_cast<int64_t>(token) * q_heads + q_head) * p.pages.dim;
    for (int channel = threadIdx.x; channel < p.pages.dim; channel += kMergeWarps * arch::kWarp) {
      float out = 0.0f;
#pragma unroll
      for (int w = 0; w < kMergeWarps; ++w) out += weights[w] * shared.out[w][channel];
      to[channel] = arch::rounded<T>(out * inverse);
    }
    if (threadIdx.x == 0) {
      p.lse[static_cast<int64_t>(q_head) * p.query_tokens + token] = log_of(top, sum);
    }
    __syncthreads();
  }
}

}  // namespace afnext::cuda
