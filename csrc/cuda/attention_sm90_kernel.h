// Attention for Hopper: one warp fetches tiles of keys and values by TMA, three fetch queries, two
// or three warpgroups multiply by wgmma, each for 64 rows of queries x heads.
//
// What runs under what:
// - Copies under everything: K and V each have a ring of tiles, full and empty by mbarriers, and so
//   have the queries of items.
// - Inside a warpgroup, a tile's scores (Q K^T) and the last tile's sums (P V) go to the tensor
// cores
//   together; when the scores are there, their softmax runs under P V.
// - Between warpgroups, named barriers pass the tensor cores on: while one warpgroup's products
// run,
//   the others are at their softmax, instead of all at the same.
// This is the plan of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608).
//
// Blocks stay and take items in turns, so that fetching runs ahead into the next item while results
// are written: as only one block fits on a multiprocessor, an item's start and end would else leave
// all of it idle. Long items come first and are dealt forwards and backwards in turn: every block
// gets about the same, and nobody counts.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/arch/copy.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/arch/warp.h"
#include "cuda/attention_sm90_tiles.h"
#include "cuda/rotation.h"

namespace afnext::cuda::sm90 {

// --- the warps that fetch ----------------------------------------------------------------------

// Queries are not TMA's: a block's rows are not a box of any tensor, and they turn on their way.
// The three warps that tiles leave over fetch them, an item ahead.
constexpr int kQueryWarps = kWarpgroup / arch::kWarp - 1;

// Named barriers: of these warps, of each warpgroup alone, and of the turns.
constexpr int kQueryBarrier = 1, kGroupBarrier = 2, kTurnBarrier = 5;

// Each warp brings sixteens of rows, and turns them.
template <typename T, int kDim>
AFNEXT_DEVICE void fetch_queries(Tile<T, kGroupRows, kDim> (&tiles)[Shape<kDim>::kConsumers],
                                 const AttentionParams& p, const Work<kDim>& work) {
  constexpr int kRows = 16, kUnits = kDim / 8;  // units of 16 bytes
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int start = (static_cast<int>(threadIdx.x) / arch::kWarp - 1) * kRows;
#pragma unroll 1
  for (int first = start; first < Shape<kDim>::kRows; first += kQueryWarps * kRows) {
    auto& tile = tiles[first / kGroupRows];
#pragma unroll 1
    for (int i = lane; i < kRows * kUnits; i += arch::kWarp) {
      const int at = first + i / kUnits, channel = i % kUnits * 8, row = work.first_row + at;
      const bool inside = row < work.end_row;  // rows past the end are zeros
      const int64_t token = inside ? work.first_query + row / p.group : 0;
      const int head = work.kv_head * p.group + row % p.group;
      const T* from = static_cast<const T*>(p.q.data) + p.q.at(token, head);
      arch::cp_async<16>(tile.at(at % kGroupRows, channel), from + channel, inside ? 16 : 0);
    }
  }
  arch::cp_async_commit_group();
  arch::cp_async_wait_group<0>();
  __syncwarp();
  if (p.half == 0) return;
#pragma unroll 1
  for (int first = start; first < Shape<kDim>::kRows; first += kQueryWarps * kRows) {
    auto& tile = tiles[first / kGroupRows];
#pragma unroll 1
    for (int pair = lane; pair < p.half; pair += arch::kWarp) {
      const int channel = p.interleaved ? 2 * pair : pair, apart = p.interleaved ? 1 : p.half;
      const float inv_freq = p.inv_freq[pair];
      const int rows = work.end_row - work.first_row - first;
      int token = work.first_query + (work.first_row + first) / p.group;
      int head = (work.first_row + first) % p.group;
      SinCos phase{};  // of a query, for all its heads
#pragma unroll 1
      for (int i = 0; i < kRows && i < rows; ++i) {
        if (i == 0 || head == 0) phase = sincos_of(p.times_q[token], inv_freq);
        if (++head == p.group) head = 0, ++token;
        T* a = tile.at(first % kGroupRows + i, channel);
        T* b = tile.at(first % kGroupRows + i, channel + apart);
        float x = arch::to_float(*a), y = arch::to_float(*b);
        turn(phase, &x, &y);
        arch::from_float(x, a);
        arch::from_float(y, b);
      }
    }
  }
}

// All items of a block, each when the results of the one before the last have left its place.
template <typename T, int kDim>
AFNEXT_DEVICE void fetch_all_queries(Shared<T, kDim>& shared, const AttentionParams& p,
                                     const Rounds& rounds) {
  for (int round = 0; rounds.has(round); ++round) {
    const Slot<Shared<T, kDim>::kItems> place(arch::opaque(round));
    arch::mbarrier_wait(&shared.q_empty[place.stage], place.parity ^ 1);
    if (threadIdx.x == arch::kWarp) {
      shared.work[place.stage] = Work<kDim>(rounds.item(round), p.group);
    }
    arch::bar_sync(kQueryBarrier, kQueryWarps * arch::kWarp);
    fetch_queries<T, kDim>(shared.q[place.stage], p, shared.work[place.stage]);
    arch::fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % arch::kWarp == 0) {
      arch::mbarrier_arrive(&shared.q_full[arch::opaque(round) % Shared<T, kDim>::kItems]);
    }
  }
}

// Tiles of K and V, by one warp.
template <typename T, int kDim>
class TileFetcher {
 public:
  using S = Shape<kDim>;

  AFNEXT_DEVICE TileFetcher(Shared<T, kDim>& shared, const arch::TensorMap& map_k,
                            const arch::TensorMap& map_v, int key_tokens)
      : shared_(shared), map_k_(map_k), map_v_(map_v), key_tokens_(key_tokens) {}

  // All tiles of an item, K a tile ahead of V, as they are used.
  AFNEXT_DEVICE void fetch(const Work<kDim>& work) {
    const bool lead = threadIdx.x % arch::kWarp == 0;
    const bool ragged =
        work.key(0) + S::kKeys > work.band.keys && work.first_key + work.band.keys < key_tokens_;
    for (int n = 0; n <= work.tiles; ++n) {
      if (n < work.tiles && lead) load_k(work, n);
      if (n == 1 && ragged) {
        load_cleared(work, lead);
      } else if (n > 0 && lead) {
        const Place place(fetched_ + n - 1);
        load_v(work, n - 1, place, &shared_.v_full[place.stage]);
      }
    }
    fetched_ += work.tiles;
  }

 private:
  using KeyTile = Tile<T, S::kKeys, kDim>;
  using Place = Slot<S::kStages>;

  AFNEXT_DEVICE void load(const arch::TensorMap& map, const Work<kDim>& work, int n, KeyTile& tile,
                          uint64_t* full) {
    arch::mbarrier_arrive_expect_tx(full, KeyTile::kBytes);
    arch::cp_async_bulk_tensor_load(map, {0, work.first_key + work.key(n), 0, work.kv_head}, &tile,
                                    full);
  }
  AFNEXT_DEVICE void load_k(const Work<kDim>& work, int n) {
    const Place place(fetched_ + n);
    arch::mbarrier_wait(&shared_.k_empty[place.stage], place.parity ^ 1);
    load(map_k_, work, n, shared_.k[place.stage], &shared_.k_full[place.stage]);
  }
  AFNEXT_DEVICE void load_v(const Work<kDim>& work, int n, Place place, uint64_t* full) {
    arch::mbarrier_wait(&shared_.v_empty[place.stage], place.parity ^ 1);
    load(map_v_, work, n, shared_.v[place.stage], full);
  }
  // Behind the sequence's last key lie another's, or what nobody wrote. Their weights are 0, but 0
  // times NaN is not. (Behind the last of all, copies bring zeros.)
  AFNEXT_DEVICE void load_cleared(const Work<kDim>& work, bool lead) {
    const Place place(fetched_);
    if (lead) load_v(work, 0, place, &shared_.v_landed);
    arch::mbarrier_wait(&shared_.v_landed, landed_++ % 2);
    constexpr int kUnits = kPiece / 8;
    const int first = (work.band.keys - work.key(0)) * kUnits;
    const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
#pragma unroll
    for (auto& piece : shared_.v[place.stage].pieces) {
      for (int i = first + lane; i < S::kKeys * kUnits; i += arch::kWarp) {
        reinterpret_cast<uint4*>(piece)[i] = {};
      }
    }
    arch::fence_proxy_async();
    __syncwarp();
    if (lead) arch::mbarrier_arrive(&shared_.v_full[place.stage]);
  }

  Shared<T, kDim>& shared_;
  const arch::TensorMap &map_k_, &map_v_;
  int key_tokens_;
  unsigned fetched_ = 0;  // tiles of earlier items
  int landed_ = 0;        // of them those that were cleared
};

// --- the warpgroups that multiply --------------------------------------------------------------

// Of the sums of a product, register i of a thread: its place within the warp's 16 rows, in eights,
// and its column, from the thread's first on.
AFNEXT_DEVICE constexpr int half_of(int i) { return i / 2 % 2; }
AFNEXT_DEVICE constexpr int column_of(int i) { return i / 4 * 8 + i % 2; }

// What a warpgroup's rows see of their sequence's keys, and this thread's two.
template <int kDim>
class RowMask {
 public:
  AFNEXT_DEVICE RowMask(const Work<kDim>& work, int heads, int group, int thread) {
    const int group_row = work.first_row + group * kGroupRows;
    const auto query_of = [&](int row) {
      return (row < work.end_row ? row : work.end_row - 1) / heads;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = thread / arch::kWarp * 16 + half * 8 + thread % arch::kWarp / 4;
      first_[half] = work.band.first(query_of(group_row + row));
      end_[half] = work.band.end(query_of(group_row + row));
    }
    all_first_ = work.band.first(query_of(group_row + kGroupRows - 1));
    all_end_ = work.band.end(query_of(group_row));
  }
  // Whether there is a key in the tile that a row does not see.
  AFNEXT_DEVICE bool cuts(int key) const {
    return key < all_first_ || key + Shape<kDim>::kKeys > all_end_;
  }
  template <int kCount>
  AFNEXT_DEVICE void apply(float (&scores)[kCount], int key, int lane) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = key + lane % 4 * 2 + column_of(i), half = half_of(i);
      if (at < first_[half] || at >= end_[half]) scores[i] = -INFINITY;
    }
  }

 private:
  int first_[2], end_[2];
  int all_first_, all_end_;  // keys that every row sees
};

// Softmax of two rows of a thread while their scores come tile by tile.
struct OnlineSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  // Makes weights 2 ** (scale * (score - top)) of scores; what was summed before is worth `factor`
  // of it from now on. A row that has seen no key yet keeps weights of 0.
  template <int kCount>
  AFNEXT_DEVICE void weigh(float (&scores)[kCount], float scale, float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float tops[2] = {top[half], top[half]};  // two chains are done in half the time
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (half_of(i) == half) tops[i % 2] = fmaxf(tops[i % 2], scores[i]);
      }
      const float now = arch::max_lanes<4>(fmaxf(tops[0], tops[1]));
      const float base = now == -INFINITY ? 0.0f : now * scale;
      factor[half] = arch::exp2_approx(top[half] * scale - base);
      top[half] = now;
      float sums[2] = {};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (half_of(i) != half) continue;
        scores[i] = arch::exp2_approx(scores[i] * scale - base);
        sums[i % 2] += scores[i];
      }
      sum[half] = sum[half] * factor[half] + (sums[0] + sums[1]);
    }
  }
};

// The order in which warpgroups hand their products to the tensor cores: 0, 1, .., 0, 1, ... Who
// has had its turn computes a softmax meanwhile.
template <int kConsumers>
struct Turns {
  int group;

  AFNEXT_DEVICE void begin() const {
    if (group == kConsumers - 1) pass();
  }
  AFNEXT_DEVICE void wait() const { arch::bar_sync(kTurnBarrier + group, 2 * kWarpgroup); }
  AFNEXT_DEVICE void pass() const {
    const int next = arch::opaque(group) + 1;
    arch::bar_arrive(kTurnBarrier + (next < kConsumers ? next : 0), 2 * kWarpgroup);
  }
  AFNEXT_DEVICE void end() const {
    if (group == 0) wait();
  }
};

// The results of this thread's two rows: sums of values over sums of weights.
template <typename T, int kDim>
AFNEXT_DEVICE void store_results(Tile<T, kGroupRows, kDim>& tile, const AttentionParams& p,
                                 const Work<kDim>& work, int group, const float (&out)[kDim / 2],
                                 const OnlineSoftmax& softmax) {
  const int thread = arch::opaque(static_cast<int>(threadIdx.x)) % kWarpgroup;
  const int lane = thread % arch::kWarp, warp_row = thread / arch::kWarp * 16;
  const int group_row = work.first_row + group * kGroupRows;
  const auto place_of = [&](int row) {
    const int64_t query = work.first_query + row / p.group;
    const int head = work.kv_head * p.group + row % p.group;
    return (query * p.group * p.kv_heads + head) * kDim;
  };
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = group_row + warp_row + half * 8 + lane / 4;
    const float sum = arch::sum_lanes<4>(softmax.sum[half]);
    factor[half] = sum == 0 ? 0.0f : 1.0f / sum;
    if (lane % 4 == 0 && row < work.end_row) {
      const int head = work.kv_head * p.group + row % p.group;
      p.lse[static_cast<int64_t>(head) * p.query_tokens + work.first_query + row / p.group] =
          sum == 0 ? -INFINITY : softmax.top[half] * p.scale + arch::log2_approx(sum) * kLn2;
    }
  }
  if (p.out_is_float) {  // four lanes fill a sector of 32 bytes
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = group_row + warp_row + half * 8 + lane / 4;
      if (row >= work.end_row) continue;
      float* to = static_cast<float*>(p.out) + place_of(row) + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i) = {out[4 * i + 2 * half] * factor[half],
                                                  out[4 * i + 2 * half + 1] * factor[half]};
      }
    }
    return;
  }
  // By way of the queries' memory, so that lanes write 16 bytes of a row each. Warps share it
  // before: the manual does not say that a warp's products read no other warp's rows.
  arch::bar_sync(kGroupBarrier + group, kWarpgroup);
#pragma unroll
  for (int i = 0; i < kDim / 4; ++i) {
    const int half = i % 2;
    *reinterpret_cast<uint32_t*>(
        tile.at(warp_row + half * 8 + lane / 4, i / 2 * 8 + lane % 4 * 2)) =
        arch::pack(out[2 * i] * factor[half], out[2 * i + 1] * factor[half], T{});
  }
  __syncwarp();
  constexpr int kUnits = kDim / 8;
#pragma unroll
  for (int i = 0; i < 16 * kUnits / arch::kWarp; ++i) {
    const int row = warp_row + (i * arch::kWarp + lane) / kUnits, unit = lane % kUnits;
    if (group_row + row >= work.end_row) break;
    *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + place_of(group_row + row) + unit * 8) =
        *reinterpret_cast<const uint4*>(tile.at(row, unit * 8));
  }
}

// An item's rows of one warpgroup, `tile` being the first of the item's tiles, then of the next's.
template <typename T, int kDim>
AFNEXT_DEVICE void attend(Shared<T, kDim>& shared, const AttentionParams& p, unsigned item,
                          int group, unsigned& tile) {
  using S = Shape<kDim>;
  using Place = Slot<S::kStages>;
  constexpr int kSteps = S::kKeys / 16;
  const int thread = arch::opaque(static_cast<int>(threadIdx.x)) % kWarpgroup;
  const int lane = thread % arch::kWarp;
  const Work<kDim>& work = shared.work[item];
  const RowMask<kDim> mask(work, p.group, group, thread);
  float scores[S::kKeys / 2], out[kDim / 2] = {}, factor[2];
  uint32_t weights[kSteps][4];
  int key = work.key(0);  // the first of the tile
  OnlineSoftmax softmax;
  const Turns<S::kConsumers> turns{group};

  const auto multiply_keys = [&](unsigned n) {
    const Place place(n);
    const auto& queries = shared.q[item][arch::opaque(group)];
    arch::mbarrier_wait(&shared.k_full[place.stage], place.parity);
    arch::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      arch::wgmma_mma_async<arch::Major::k, arch::Major::k>(
          scores, queries.channels(i), shared.k[place.stage].channels(i), i > 0, T{});
    }
    arch::wgmma_commit_group();
  };
  const auto multiply_values = [&](unsigned n) {
    const Place place(n);
    arch::mbarrier_wait(&shared.v_full[place.stage], place.parity);
    arch::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      arch::wgmma_mma_async<arch::Major::mn>(out, weights[i], shared.v[place.stage].rows(i), true,
                                             T{});
    }
    arch::wgmma_commit_group();
  };
  // Each warp knows for itself that its products are done.
  const auto release = [&](uint64_t (&empty)[S::kStages], unsigned n) {
    if (lane == 0) arch::mbarrier_arrive(&empty[Place(n).stage]);
  };
  const auto weigh = [&] {
    if (mask.cuts(key)) mask.apply(scores, key, lane);
    softmax.weigh(scores, p.scale * kLog2E, factor);
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int i = 0; i < S::kKeys / 4; ++i) {
      weights[i / 4][i % 4] = arch::pack(scores[2 * i], scores[2 * i + 1], T{});
    }
  };

  if (work.tiles > 0) {
    const int last_key = work.key(work.tiles - 1);
    const unsigned first_tile = tile;
    multiply_keys(tile);
    arch::wgmma_wait_group<0>();
    arch::hold(scores);
    release(shared.k_empty, tile);
    weigh();
    // A turn begins with the wait for the last one's sums, so that the softmax at its end can't be
    // put off until then: compilers move arithmetic within a block of code, not from one to the
    // next.
#pragma unroll 1
    while (true) {
      arch::wgmma_wait_group<0>();
      arch::hold(out);
      if (tile != first_tile) release(shared.v_empty, tile - 1);
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out[i] *= factor[half_of(i)];
      pack_weights();
      if (key == last_key) break;
      // The next scores and these weights' product with values go together: while the latter runs,
      // the softmax of the former does.
      key -= S::kKeys;
      turns.wait();
      multiply_keys(tile + 1);
      multiply_values(tile);
      turns.pass();
      arch::wgmma_wait_group<1>();
      arch::hold(scores);
      release(shared.k_empty, tile + 1);
      weigh();
      ++tile;
    }
    multiply_values(tile);
    arch::wgmma_wait_group<0>();
    arch::hold(out);
    release(shared.v_empty, tile);
    ++tile;
  }

  store_results<T, kDim>(shared.q[item][group], p, work, group, out, softmax);
}

// --- the kernel --------------------------------------------------------------------------------

template <typename T, int kDim>
__global__ void __launch_bounds__(Shape<kDim>::kThreads, 1)
    attention_kernel(const AttentionParams p, bool heads_apart,
                     const __grid_constant__ arch::TensorMap map_k,
                     const __grid_constant__ arch::TensorMap map_v) {
  if constexpr (arch::kSm90a) {
    using S = Shape<kDim>;
    auto& shared = arch::shared_memory<Shared<T, kDim>>();
    const Rounds rounds(p, heads_apart);
    const int warp = static_cast<int>(threadIdx.x) / arch::kWarp;
    if (threadIdx.x == 0) {
      constexpr int kWarps = S::kConsumers * kWarpgroup / arch::kWarp;
      for (int i = 0; i < S::kStages; ++i) {
        arch::mbarrier_init(&shared.k_full[i], 1);
        arch::mbarrier_init(&shared.v_full[i], 1);
        arch::mbarrier_init(&shared.k_empty[i], kWarps);
        arch::mbarrier_init(&shared.v_empty[i], kWarps);
      }
      arch::mbarrier_init(&shared.v_landed, 1);
      for (int i = 0; i < Shared<T, kDim>::kItems; ++i) {
        arch::mbarrier_init(&shared.q_full[i], kQueryWarps);
        arch::mbarrier_init(&shared.q_empty[i], kWarps);
      }
      arch::prefetch_tensor_map(map_k);
      arch::prefetch_tensor_map(map_v);
      arch::fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
      arch::give_back_registers<S::kProducerRegisters>();
      if (warp > 0) return fetch_all_queries<T, kDim>(shared, p, rounds);
      TileFetcher<T, kDim> fetcher(shared, map_k, map_v, p.key_tokens);
      for (int round = 0; rounds.has(round); ++round) {
        fetcher.fetch(Work<kDim>(rounds.item(round), p.group));
      }
    } else {
      arch::take_registers<S::kConsumerRegisters>();
      const int group = warp / (kWarpgroup / arch::kWarp) - 1;
      const Turns<S::kConsumers> turns{group};
      turns.begin();
      unsigned tile = 0;
      for (int round = 0; rounds.has(round); ++round) {
        const Slot<Shared<T, kDim>::kItems> place(round);
        arch::mbarrier_wait(&shared.q_full[place.stage], place.parity);
        attend<T, kDim>(shared, p, place.stage, group, tile);
        __syncwarp();
        if (threadIdx.x % arch::kWarp == 0) arch::mbarrier_arrive(&shared.q_empty[place.stage]);
      }
      turns.end();
    }
  } else {
    arch::trap();
  }
}

}  // namespace afnext::cuda::sm90
