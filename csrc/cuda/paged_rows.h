#pragma once

#include "cuda/paged_tile.h"

namespace afnext::cuda {

// A warp's 16 rows: the softmax so far, of rows r and r + 8 in a lane, and its sum of values.
template <typename Tile>
class WarpRows {
 public:
  AFNEXT_DEVICE WarpRows(const PagedRows& rows, int first) {
    const int lane = threadIdx.x % arch::kWarp;
    const int past = rows.count - first;  // rows of this warp, or more
    some_ = past > 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      low_[h] = row < past ? rows.low(first + row) : 0;
      high_[h] = row < past ? rows.high(first + row) : 0;
    }
    if (some_) {
      const int last = first + (past < 16 ? past : 16) - 1;
      any_low_ = rows.low(first);
      all_low_ = rows.low(last);
      all_high_ = rows.high(first);
      any_high_ = rows.high(last);
    }
  }

  AFNEXT_DEVICE void attend(const PagedAttentionParams& p, const typename Tile::T* q,
                            const typename Tile::Stage& stage, int tile_key, int warp_key) {
    const int first = tile_key + warp_key, end = first + Tile::kWarpKeys;
    if (!some_ || end <= any_low_ || first >= any_high_) return;
    float scores[kProducts][4] = {};
    multiply_keys(q, stage, warp_key, scores);
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kProducts; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = warp_key + 8 * n + column + i % 2;
        scores[n][i] *= Tile::kBytes ? p.scale * stage.k_scales[key] : p.scale;
      }
    }
    if (first < all_low_ || end > all_high_) {
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first + 8 * n + column + i % 2;
          if (key < low_[i / 2] || key >= high_[i / 2]) scores[n][i] = -INFINITY;
        }
      }
    }
    soften(scores);
    multiply_values(stage, warp_key, scores);
  }

  // Sums, tops and values to shared memory, where the warps that share these rows are joined.
  AFNEXT_DEVICE void store(typename Tile::Shared& shared, int row_warp, int key_warp) {
    const int lane = threadIdx.x % arch::kWarp, row = 16 * row_warp + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = arch::sum_lanes<4>(sum_[h]);
      if (lane % 4 == 0) {
        shared.top[key_warp][row + 8 * h] = top_[h];
        shared.sum[key_warp][row + 8 * h] = sum;
      }
      float* out = shared.out + (key_warp * Tile::kRows + row + 8 * h) * Tile::kSumStride;
#pragma unroll
      for (int n = 0; n < kOutProducts; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          out[Tile::out_channel(n, lane % 4 * 2 + i)] = out_[n][2 * h + i];
        }
      }
    }
  }

 private:
  static constexpr int kProducts = Tile::kWarpKeys / 8, kOutProducts = Tile::kDim / 8;

  AFNEXT_DEVICE static void multiply_keys(const typename Tile::T* q,
                                          const typename Tile::Stage& stage, int warp_key,
                                          float (&scores)[kProducts][4]) {
    using T = typename Tile::T;
    const int lane = threadIdx.x % arch::kWarp;
#pragma unroll 4
    for (int step = 0; step < Tile::kDim / 16; ++step) {
      uint32_t a[4];
      arch::ldmatrix(a, q + Tile::template place<T>(lane % 16, 16 * step + lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < kProducts; n += 2) {
        uint32_t b[2][2];
        load_keys<Tile>(stage, warp_key + 8 * n, step, b);
        arch::mma_sync(scores[n], a, b[0], T{});
        arch::mma_sync(scores[n + 1], a, b[1], T{});
      }
    }
  }

  // Scores to probabilities against the largest so far; what is known is put on its footing.
  AFNEXT_DEVICE void soften(float (&scores)[kProducts][4]) {
    float factors[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = top_[h];
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
        top = fmaxf(top, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
      }
      top = arch::max_lanes<4>(top);
      const float footing = top == -INFINITY ? 0.0f : top;
      factors[h] = arch::exp2_approx(top_[h] - footing);
      top_[h] = top;
      sum_[h] *= factors[h];
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          scores[n][i] = arch::exp2_approx(scores[n][i] - footing);
          sum_[h] += scores[n][i];
        }
      }
    }
    // Once the largest has been met nothing changes any more.
    if (__all_sync(arch::kAllLanes, factors[0] == 1.0f && factors[1] == 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kOutProducts; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] *= factors[i / 2];
    }
  }

  AFNEXT_DEVICE void multiply_values(const typename Tile::Stage& stage, int warp_key,
                                     const float (&p)[kProducts][4]) {
    using T = typename Tile::T;
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kProducts; n += 2) {
      const int first = warp_key + 8 * n;
      float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f}, weights[2][4];
      if constexpr (Tile::kBytes) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scales[i] = stage.v_scales[first + column + i % 2 + i / 2 * 8];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float weight = p[n + i / 4][i % 4];
        // Not seen, or nothing beside the others: no scale brings it back.
        const bool scaled = Tile::kBytes && !Tile::kScaleValues && weight != 0.0f;
        weights[i / 4][i % 4] = scaled ? weight * scales[i / 4 * 2 + i % 2] : weight;
      }
      const uint32_t a[4] = {arch::pack(weights[0][0], weights[0][1], T{}),
                             arch::pack(weights[0][2], weights[0][3], T{}),
                             arch::pack(weights[1][0], weights[1][1], T{}),
                             arch::pack(weights[1][2], weights[1][3], T{})};
#pragma unroll
      for (int step = 0; step < Tile::kDim / 16; ++step) {
        uint32_t b[2][2];
        load_values<Tile>(stage, first, step, scales, b);
        arch::mma_sync(out_[2 * step], a, b[0], T{});
        arch::mma_sync(out_[2 * step + 1], a, b[1], T{});
      }
    }
  }

  bool some_;
  int low_[2], high_[2];
  // What any of the rows sees, what all see.
  int any_low_ = 0, any_high_ = 0, all_low_ = 0, all_high_ = 0;
  float top_[2] = {-INFINITY, -INFINITY}, sum_[2] = {};
  float out_[kOutProducts][4] = {};
};

}  // namespace afnext::cuda
