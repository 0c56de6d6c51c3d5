// Backward attention a row at a time: what the tensor cores' kernel needs beforehand, and all of it
// in float32.
//
// Beforehand: out and grad_out are read once, 4 D bytes a row in 16 bits, 8 bytes are written: the
// limit is memory. 35 to 64 registers, no shared memory: four blocks of 256 threads a
// multiprocessor or more, each with 16 lanes x 16 bytes of two tensors a row on their way.
//
// In float32, two passes: 8 D FLOPs and 8 D bytes (out of the L1 or the L2) per pair of row and
// key in each. 90 to 112 registers, as a lane keeps 8 channels of four rows, and 8 KB of shared
// memory to turn gradients back: two blocks of 8 rows a multiprocessor.
#pragma once

#include "cuda/attention_backward_output.h"

namespace afnext::cuda {

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / arch::kWarp;
constexpr int kMaxDim = 256;

struct SoftmaxParams {
  Heads grad_out, out;
  const float *lse, *grad_lse;  // [heads, tokens]; grad_lse may be null
  float log_unit;               // what lse is multiplied by
  float2* softmax;              // BackwardParams::softmax
  int64_t tokens;
  int heads, group, dim;
};

// Two rows a warp: 16 lanes of 8 channels take a head of 128 at once.
template <typename T, typename Out, int kVector>
__global__ void __launch_bounds__(kRowThreads) softmax_rows_kernel(const SoftmaxParams p) {
  constexpr int kLanes = 16;
  struct alignas(sizeof(T) * kVector) Grads {
    T at[kVector];
  };
  struct alignas(kVector == 1 ? sizeof(Out) : 16) Outs {
    Out at[kVector];
  };
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  // 2**32 rows would be more than a device holds.
  const uint32_t row = blockIdx.x * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const auto heads = static_cast<uint32_t>(p.heads);
  const uint32_t row_token = row / heads;
  const bool real = row_token < p.tokens;  // all lanes take part in the sum
  const int64_t token = real ? row_token : 0;
  const int head = real ? static_cast<int>(row % heads) : 0;
  const T* grad = static_cast<const T*>(p.grad_out.data) + p.grad_out.at(token, head);
  const Out* out = static_cast<const Out*>(p.out.data) + p.out.at(token, head);
  float delta = 0;
  for (int d = kVector * lane; d < p.dim; d += kVector * kLanes) {
    const Grads grads = *reinterpret_cast<const Grads*>(grad + d);
    const Outs outs = *reinterpret_cast<const Outs*>(out + d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      delta = fmaf(arch::to_float(grads.at[i]), arch::to_float(outs.at[i]), delta);
    }
  }
  delta = arch::sum_lanes<kLanes>(delta);
  if (!real || lane != 0) return;
  const int64_t at = head * p.tokens + token;
  const float lse = p.lse[at];
  // A row that sees no key has weights of zero by its mask, whatever stands here.
  const float scaled = lse == -INFINITY ? 0.0f : lse * p.log_unit;
  if (p.grad_lse != nullptr) delta -= p.grad_lse[at];
  p.softmax[(head / p.group * p.tokens + token) * p.group + head % p.group] = {scaled, delta};
}

struct RowTile {
  float at[kRowWarps][kMaxDim];
};

// float32: a warp keeps a row, or a key, and has a lane for every 32nd channel.
template <typename Side>
__global__ void __launch_bounds__(kRowThreads, 1) attention_backward_rows(const BackwardParams p) {
  constexpr int kKept = kMaxDim / arch::kWarp;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int warp = static_cast<int>(threadIdx.x) / arch::kWarp;
  const BackwardWork work(p, p.items[blockIdx.x]);
  const int row = work.first + warp;
  if (row >= Side::count(work.meetings, work.keys)) return;
  const bool meeting = row < Side::meeting(work.meetings);
  const Place place = Side::kept(work)(row);
  const auto read = [&](const Heads& t, const Place& from, float (&to)[kKept]) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int d = lane + arch::kWarp * i;
      to[i] = d < p.dim ? static_cast<const float*>(t.data)[t.at(from.token, from.head) + d] : 0.0f;
    }
  };
  const auto dot = [](const float (&a)[kKept], const float (&b)[kKept]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kKept; ++i) sum = fmaf(a[i], b[i], sum);
    return arch::sum_lanes(sum);
  };
  float x[kKept], y[kKept], grad_x[kKept] = {}, grad_y[kKept] = {};
  read(Side::x(p), place, x);
  read(Side::y(p), place, y);
  const Interval span = meeting ? Side::met(work.meetings, row) : Interval{0, 0};
#pragma unroll 1
  for (int column = span.low; column < span.high; ++column) {
    const Place streamed = Side::streamed(work)(column);
    float u[kKept], w[kKept];
    read(Side::u(p), streamed, u);
    read(Side::w(p), streamed, w);
    const float2 softmax = work.softmax[Side::kKeys ? column : row];
    const float weight = expf(fmaf(dot(x, u), p.scale, -softmax.x));
    const float grad = weight * (dot(y, w) - softmax.y);
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      grad_x[i] = fmaf(grad, u[i], grad_x[i]);
      grad_y[i] = fmaf(weight, w[i], grad_y[i]);
    }
  }
  float* tile = arch::shared_memory<RowTile>().at[warp];
  const auto write = [&](const float (&sums)[kKept], float factor, void* out, const float* times) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kKept; ++i) tile[lane + arch::kWarp * i] = factor * sums[i];
    __syncwarp();
    if (times != nullptr) {
      turn_back(tile, times[place.token], p);
      __syncwarp();
    }
    write_row(tile, static_cast<float*>(out), place, Side::heads(p), p, meeting);
  };
  write(grad_x, p.scale, Side::grad_x(p), Side::times(p));
  if constexpr (Side::kKeys) write(grad_y, 1.0f, p.grad_v, nullptr);
}

}  // namespace afnext::cuda
