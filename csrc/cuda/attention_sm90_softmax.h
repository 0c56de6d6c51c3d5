// Attention on Hopper: masks and softmax of a product's rows, in the registers it leaves them in.
#pragma once

#include "cuda/arch/warp.h"
#include "cuda/arch/wgmma.h"
#include "cuda/attention_sm90_tiles.h"

namespace afnext::cuda::sm90 {

// Of the sums of a product, register i of a thread: its place within the warp's 16 rows, in eights,
// and its column, from the thread's first on.
AFNEXT_DEVICE constexpr int half_of(int i) { return i / 2 % 2; }
AFNEXT_DEVICE constexpr int column_of(int i) { return i / 4 * 8 + i % 2; }

// The row of a thread of a warpgroup among the product's 64.
AFNEXT_DEVICE int row_of(int thread, int half) {
  return thread / arch::kWarp * 16 + half * 8 + thread % arch::kWarp / 4;
}

// What a warpgroup's rows see of a sequence's keys.
class RowMask {
 public:
  RowMask() = default;
  AFNEXT_DEVICE explicit RowMask(const Row* rows)
      : all_first_(rows[kGroupRows - 1].first), all_end_(rows[0].end) {}

  // Takes a tile's keys from the rows that do not see them. Most tiles pass by both masks at once.
  template <int kCount>
  AFNEXT_DEVICE void apply(const Row* rows, float (&scores)[kCount], int key, int thread) const {
    const bool ends = key + 2 * kCount > all_end_, begins = key < all_first_;
    if (!ends && !begins) return;
    const int column = key + thread % 4 * 2;  // this thread's first
    const Row &low = rows[row_of(thread, 0)], &high = rows[row_of(thread, 1)];
    if (ends) {
      const int end[] = {low.end - column, high.end - column};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (column_of(i) >= end[half_of(i)]) scores[i] = -INFINITY;
      }
    }
    if (begins) {
      const int first[] = {low.first - column, high.first - column};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (column_of(i) < first[half_of(i)]) scores[i] = -INFINITY;
      }
    }
  }

 private:
  int all_first_, all_end_;  // keys that every row sees
};

// Softmax of two rows of a thread while their scores come tile by tile.
//
// A weight is 2 ** (scale * score - base). The base has to be near a row's top score only in so far
// as no weight overflows and the top one keeps its digits, so it stays what it was until a tile's
// weights are large; only then is the tile's top looked for, lanes of a row agree on it, and what
// was summed is scaled down. Most tiles thus cost a thread 64 multiply-adds, exponentials and
// additions and 32 roundings, where finding the top of each would cost it 64 maxima, four shuffles
// in two steps and, for the sums, 64 multiplications, all between one product and the next.
struct OnlineSoftmax {
  static constexpr float kMost =
      4096;  // of a thread's weights in a tile and row: float16 has 65504

  // Before the first key, any weight is too large.
  float base[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  // Weights of a tile, packed as a product's a. What was summed before is worth `factor` of it from
  // now on if it `grew`.
  template <int kCount, typename T>
  AFNEXT_DEVICE bool weigh(float (&scores)[kCount], float scale, bool is_first,
                           uint32_t (&weights)[kCount / 8][4], float (&factor)[2], T) {
    if (!is_first) {
      float sums[2];
      exponentials(scores, scale, base, weights, sums, T{});
      if (__all_sync(arch::kAllLanes, sums[0] <= kMost && sums[1] <= kMost)) {
        sum[0] += sums[0];
        sum[1] += sums[1];
        return false;
      }
      arch::hold(scores);  // nothing of the above is kept for what follows
    }
    raise(scores, scale, weights, factor, T{});
    return true;
  }

 private:
  template <int kCount, typename T>
  AFNEXT_DEVICE void raise(const float (&scores)[kCount], float scale,
                           uint32_t (&weights)[kCount / 8][4], float (&factor)[2], T) {
    float from[2], sums[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float tops[2] = {-INFINITY, -INFINITY};  // two chains are done in half the time
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (half_of(i) == half) tops[i % 2] = fmaxf(tops[i % 2], scores[i]);
      }
      const float top = arch::max_lanes<4>(fmaxf(tops[0], tops[1]));
      const float now = fmaxf(top * scale, base[half]);
      from[half] = now == -INFINITY ? 0.0f : now;  // no key yet: weights of 0
      factor[half] = arch::exp2_approx(base[half] - from[half]);
      base[half] = now;
    }
    exponentials(scores, scale, from, weights, sums, T{});
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] = sum[half] * factor[half] + sums[half];
  }

  template <int kCount, typename T>
  AFNEXT_DEVICE static void exponentials(const float (&scores)[kCount], float scale,
                                         const float (&from)[2], uint32_t (&weights)[kCount / 8][4],
                                         float (&sums)[2], T) {
    float parts[2][2] = {};
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const int half = half_of(2 * i);
      const float a = arch::exp2_approx(scores[2 * i] * scale - from[half]);
      const float b = arch::exp2_approx(scores[2 * i + 1] * scale - from[half]);
      parts[half][0] += a;
      parts[half][1] += b;
      weights[i / 4][i % 4] = arch::pack(a, b, T{});
    }
    sums[0] = parts[0][0] + parts[0][1];
    sums[1] = parts[1][0] + parts[1][1];
  }
};

}  // namespace afnext::cuda::sm90
