// From sums in registers to gradients in memory: scaled, turned back and rounded once.
#pragma once

#include "cuda/arch/numbers.h"
#include "cuda/arch/warp.h"
#include "cuda/attention_backward_params.h"
#include "cuda/rotation.h"

namespace afnext::cuda {

// A warp's rows begin at `first`; gradients from `meeting` on are 0, from `count` on nobody's.
struct GradientRows {
  int first, meeting, count;
};

// Turns the pairs of a warp's row of float32 in shared memory back by its time. All lanes call it.
AFNEXT_DEVICE void turn_back(float* row, float time, const BackwardParams& p) {
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
#pragma unroll 1
  for (int i = lane; i < p.half; i += arch::kWarp) {
    const RotatedPair at(i, p.half, p.interleaved);
    const SinCos phase = sincos_of(time, p.inv_freq[i]);
    turn({-phase.sin, phase.cos}, row + at.first, row + at.second);
  }
}

// A warp's row of float32 in shared memory to its place in [tokens, heads, dim]; zeros unless
// `real`.
template <typename T>
AFNEXT_DEVICE void write_row(const float* row, T* out, const Place& place, int heads,
                             const BackwardParams& p, bool real) {
  constexpr int kVector = 16 / sizeof(T);
  struct alignas(16) Vector {
    T at[kVector];
  };
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  out += (int64_t{place.token} * heads + place.head) * p.dim;
  if (p.wide) {
    for (int d = kVector * lane; d < p.dim; d += kVector * arch::kWarp) {
      Vector values;
#pragma unroll
      for (int i = 0; i < kVector; ++i) values.at[i] = arch::rounded<T>(real ? row[d + i] : 0.0f);
      *reinterpret_cast<Vector*>(out + d) = values;
    }
  } else {
    for (int d = lane; d < p.dim; d += arch::kWarp) out[d] = arch::rounded<T>(real ? row[d] : 0.0f);
  }
}

// Shared memory of what a block writes: 8 floats between rows keep what lanes write of their
// fragments in different banks.
template <typename Shape>
struct GradientTile {
  float at[Shape::kRows][Shape::kDim + 8];
};

// factor * sums, turned back if there are `times`, to the rows of `out`. Warps work apart.
template <typename T, typename Shape, int kM, typename Places>
AFNEXT_DEVICE void write_gradient(const float (&sums)[kM][Shape::kDim / 8][4], float factor,
                                  const BackwardParams& p, const GradientRows& rows,
                                  const Places& places, void* out, int heads, const float* times) {
  static_assert(sizeof(GradientTile<Shape>) <= sizeof(typename Shape::Shared));
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int warp = static_cast<int>(threadIdx.x) / arch::kWarp;
  auto* tile = arch::shared_memory<GradientTile<Shape>>().at + warp * Shape::kWarpRows;
  __syncwarp();  // an earlier gradient has been read
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < Shape::kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<float2*>(&tile[16 * m + 8 * i + lane / 4][8 * n + 2 * (lane % 4)]) = {
            factor * sums[m][n][2 * i], factor * sums[m][n][2 * i + 1]};
      }
    }
  }
  __syncwarp();
  const int end = smaller(rows.count - rows.first, Shape::kWarpRows);
#pragma unroll 1
  for (int i = 0; i < end; ++i) {
    const int row = rows.first + i;
    const Place place = places(row);
    if (times != nullptr) {
      turn_back(tile[i], times[place.token], p);
      __syncwarp();
    }
    write_row(tile[i], static_cast<T*>(out), place, heads, p, row < rows.meeting);
  }
}

}  // namespace afnext::cuda
