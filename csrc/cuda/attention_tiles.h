// What blocks of attention by mma.sync keep in shared memory, and how it comes there: rows of q,
// turned, and tiles of keys and values. See attention_kernel.h.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/warp.h"
#include "cuda/attention_params.h"
#include "cuda/rotation.h"
#include "cuda/swizzled_tile.h"

namespace afnext::cuda {

template <int kDim>
struct AttentionShape {
  static constexpr int kWarps = 4, kThreads = kWarps * arch::kWarp;
  static constexpr int kStrips = kDim <= 128 ? 2 : 1;  // of 16 rows, a warp's
  static constexpr int kWarpRows = 16 * kStrips;
  static constexpr int kRows = kWarps * kWarpRows;     // a block's
  static constexpr int kKeys = 64;                     // a tile's
  static constexpr int kBlocks = kDim <= 128 ? 2 : 1;  // a multiprocessor's
};

template <typename T, int kDim>
struct AttentionShared {
  using Shape = AttentionShape<kDim>;
  SwizzledTile<T, Shape::kRows, kDim> q;  // in the end the results
  SwizzledTile<T, Shape::kKeys, kDim> k, v;
};

// Brings tiles of keys or of values. A thread brings the same units of 16 bytes of every kDown-th
// row, so that there is little to compute but the next row's address.
template <typename T, int kDim>
class KeyLoader {
 public:
  using Tile = SwizzledTile<T, AttentionShape<kDim>::kKeys, kDim>;

  // Of a head's keys, by their tokens.
  AFNEXT_DEVICE KeyLoader(Tile& tile, const Heads& from, int kv_head, int dim)
      : KeyLoader(tile, from, kv_head, dim, row_of(threadIdx.x), threadIdx.x % kAcross) {}

  // `count` keys from token `first` on; those beyond and channels past the head dim become zeros.
  AFNEXT_DEVICE void load(int first, int count) const {
    count >= kKeys ? load<false>(from_ + first * step_, count)
                   : load<true>(from_ + first * step_, count);
  }

 private:
  static constexpr int kKeys = AttentionShape<kDim>::kKeys;
  static constexpr int kAcross = kDim % 64 == 0 ? 8 : 4;
  static constexpr int kDown = AttentionShape<kDim>::kThreads / kAcross;
  static_assert(kKeys % kDown == 0 && kDown % 8 == 0);  // a thread's rows are swizzled alike

  AFNEXT_DEVICE KeyLoader(Tile& tile, const Heads& from, int kv_head, int dim, int row, int unit)
      : to_(arch::opaque(arch::SharedAddress(tile.at(row, unit)))),
        from_(static_cast<const T*>(from.data) + from.at(row, kv_head) + 8 * unit),
        step_(from.token),
        channels_(dim - 8 * unit) {}

  AFNEXT_DEVICE static int row_of(int thread) { return thread / kAcross; }

  template <bool kRagged>
  AFNEXT_DEVICE void load(const T* at, int count) const {
    const int rows = kRagged ? count - row_of(arch::opaque(static_cast<int>(threadIdx.x))) : kKeys;
#pragma unroll
    for (int row = 0; row < kKeys; row += kDown, at += kDown * step_) {
#pragma unroll
      for (int channel = 0; channel < kDim; channel += 8 * kAcross) {
        const bool real = (!kRagged || row < rows) && channel < channels_;
        arch::cp_async<16>(to_ + (row * kDim + channel) * sizeof(T), real ? at + channel : from_,
                           real ? 16 : 0);
      }
    }
  }

  arch::SharedAddress to_;
  const T* from_;
  int64_t step_;
  int channels_;
};

// A warp's rows of q as they are.
template <typename T, int kRows, int kDim>
AFNEXT_DEVICE void load_rows(SwizzledTile<T, kRows, kDim>& tile, const AttentionParams& p,
                             const AttentionItem& item) {
  constexpr int kWarpRows = AttentionShape<kDim>::kWarpRows, kUnits = kDim / 8;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int first = static_cast<int>(threadIdx.x) / arch::kWarp * kWarpRows;
  const T* base = static_cast<const T*>(p.q.data);
  const int rows = item.sequence.band.queries * p.group;
#pragma unroll 4
  for (int i = lane; i < kWarpRows * kUnits; i += arch::kWarp) {
    const int row = item.first_row + first + i / kUnits, unit = i % kUnits;
    const bool real = row < rows && 8 * unit < p.dim;
    const int64_t at =
        p.q.at(item.sequence.first_query + row / p.group, item.kv_head * p.group + row % p.group);
    arch::cp_async<16>(tile.at(first + i / kUnits, unit), real ? base + at + 8 * unit : base,
                       real ? 16 : 0);
  }
}

// Turns them by their times, two channels at a time. A query's heads follow each other: they share
// a phase.
template <typename T, int kRows, int kDim>
AFNEXT_DEVICE void turn_loaded_rows(SwizzledTile<T, kRows, kDim>& tile, const AttentionParams& p,
                                    const AttentionItem& item) {
  constexpr int kWarpRows = AttentionShape<kDim>::kWarpRows;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int first = static_cast<int>(threadIdx.x) / arch::kWarp * kWarpRows;
  const int row = item.first_row + first;
  const int rows = min(item.sequence.band.queries * p.group - row, kWarpRows);
  if (rows <= 0) return;
  const float* times = p.times_q + item.sequence.first_query;
  const float own_time = times[(row + min(lane, rows - 1)) / p.group];
  const int words = p.interleaved ? p.half : p.half / 2;
#pragma unroll 1
  for (int word = lane; word - lane < words; word += arch::kWarp) {
    const int low = min(word, words - 1);
    const float inv_freq[2] = {p.inv_freq[p.interleaved ? low : 2 * low],
                               p.inv_freq[p.interleaved ? low : 2 * low + 1]};
    SinCos phase[2] = {};
    int head = row % p.group;
#pragma unroll 2
    for (int i = 0; i < rows; ++i) {
      if (i == 0 || head == 0) {
        const float time = __shfl_sync(arch::kAllLanes, own_time, i);
        phase[0] = sincos_of(time, inv_freq[0]);
        phase[1] = sincos_of(time, inv_freq[1]);
      }
      head = head + 1 == p.group ? 0 : head + 1;
      if (word >= words) continue;
      auto* a = reinterpret_cast<uint32_t*>(&tile.element(first + i, 2 * word));
      float2 x = arch::unpack(*a, T{});
      if (p.interleaved) {
        turn(phase[0], &x.x, &x.y);
      } else {
        auto* b = reinterpret_cast<uint32_t*>(&tile.element(first + i, 2 * word + p.half));
        float2 y = arch::unpack(*b, T{});
        turn(phase[0], &x.x, &y.x);
        turn(phase[1], &x.y, &y.y);
        *b = arch::pack(y.x, y.y, T{});
      }
      *a = arch::pack(x.x, x.y, T{});
    }
  }
}

// The block's rows of a q that lies in any way, turned by their times and negated where scores are
// (a negative scale).
template <typename T, int kRows, int kDim>
AFNEXT_DEVICE void gather_rows(SwizzledTile<T, kRows, kDim>& tile, const AttentionParams& p,
                               const AttentionItem& item) {
  constexpr int kThreads = AttentionShape<kDim>::kThreads, kPairs = kDim / 2;
  const T* base = static_cast<const T*>(p.q.data);
  const int rows = item.sequence.band.queries * p.group;
  const int half = p.inv_freq != nullptr ? p.half : 0;
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPairs; i += kThreads) {
    const int row = item.first_row + i / kPairs, pair = i % kPairs;
    const RotatedPair at(pair, half, p.interleaved);
    const int64_t token = item.sequence.first_query + row / p.group;
    float x = 0, y = 0;
    if (row < rows) {
      const T* from = base + p.q.at(token, item.kv_head * p.group + row % p.group);
      if (at.first < p.dim) x = sign * arch::to_float(from[at.first]);
      if (at.second < p.dim) y = sign * arch::to_float(from[at.second]);
      if (pair < half) turn(sincos_of(p.times_q[token], p.inv_freq[pair]), &x, &y);
    }
    tile.element(i / kPairs, at.first) = arch::rounded<T>(x);
    tile.element(i / kPairs, at.second) = arch::rounded<T>(y);
  }
}

}  // namespace afnext::cuda
