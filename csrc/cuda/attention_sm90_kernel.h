// Attention for Hopper: one warp fetches tiles of keys and values by TMA, three or seven fetch
// queries, two or three warpgroups multiply by wgmma, each for 64 rows of queries x heads.
//
// What runs under what:
// - Copies under everything: K and V each have a ring of tiles, full and empty by mbarriers, and so
//   have the queries of items.
// - Inside a warpgroup, a tile's scores (Q K^T) and the last tile's sums (P V) go to the tensor
//   cores together; when the scores are there, their softmax runs under P V.
// - Between warpgroups, named barriers pass the tensor cores on: while one warpgroup's products
//   run, the others are at their softmax, instead of all at the same.
// This is the plan of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608). The softmax is shorter
// than there (OnlineSoftmax), as all of it lies between one product and the next.
//
// Blocks stay and take items in turns, so that fetching runs ahead into the next item while results
// are written: as only one block fits on a multiprocessor, an item's start and end would else leave
// all of it idle. Long items come first and are dealt forwards and backwards in turn: every block
// gets about the same, and nobody counts. Blocks with the same KV head walk over its keys at about
// the same time, so that the L2 need not hold all of them.
//
// On an H200, 28/4 heads of 128, causal, bfloat16, q turned here and k by a prologue:
//
//   tokens           2,048   8,192   16,384
//   TFLOP/s            461     716      747
//   cuDNN, unturned    400     609      642
//
// Products of large matrices get 740 to 790 there: it is power that limits the clock, to 1.65 GHz,
// so that every instruction that is not needed pays, hidden or not.
#pragma once

#include "cuda/arch/griddepcontrol.h"
#include "cuda/attention_sm90_keys.h"
#include "cuda/attention_sm90_queries.h"
#include "cuda/attention_sm90_softmax.h"

namespace afnext::cuda::sm90 {

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

// The results of this thread's two rows: sums of values over sums of weights. `tile` and `rows` are
// the warpgroup's.
template <typename T, int kDim>
AFNEXT_DEVICE void store_results(Tile<T, kGroupRows, kDim>& tile, const AttentionParams& p,
                                 const Row* rows, int group, const float (&out)[kDim / 2],
                                 const OnlineSoftmax& softmax) {
  const unsigned thread = arch::opaque(static_cast<int>(threadIdx.x)) % kWarpgroup;
  const int lane = thread % arch::kWarp, warp_row = thread / arch::kWarp * 16;
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = arch::sum_lanes<4>(softmax.sum[half]);
    factor[half] = sum == 0 ? 0.0f : arch::reciprocal_approx(sum);
    const int at = rows[row_of(thread, half)].lse;
    if (lane % 4 == 0 && at >= 0) {
      p.lse[at] = sum == 0 ? -INFINITY : (softmax.base[half] + arch::log2_approx(sum)) * kLn2;
    }
  }
  if (p.out_is_float) {  // four lanes fill a sector of 32 bytes
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = rows[row_of(thread, half)].out;
      if (at < 0) continue;
      float* to = static_cast<float*>(p.out) + int64_t{at} * kDim + lane % 4 * 2;
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
    *reinterpret_cast<uint32_t*>(tile.at(warp_row + half * 8, lane / 4, i / 2 * 8) + lane % 4 * 2) =
        arch::pack(out[2 * i] * factor[half], out[2 * i + 1] * factor[half], T{});
  }
  __syncwarp();
  constexpr int kUnits = kDim / 8, kStep = arch::kWarp / kUnits;
  const int row = lane / kUnits, channel = lane % kUnits * 8;
#pragma unroll
  for (int i = 0; i < 16; i += kStep) {
    const int at = rows[warp_row + i + row].out;
    if (at >= 0) {
      *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + int64_t{at} * kDim + channel) =
          *reinterpret_cast<const uint4*>(tile.at(warp_row + i / 8 * 8, i % 8 + row, channel));
    }
  }
}

// A warpgroup's rows of all items of its block.
template <typename T, int kDim>
class Consumer {
 public:
  AFNEXT_DEVICE Consumer(Shared<T, kDim>& shared, const AttentionParams& p, const Rounds& rounds,
                         int group)
      : shared_(shared),
        p_(p),
        rounds_(rounds),
        group_(group),
        thread_(arch::opaque(static_cast<int>(threadIdx.x)) % kWarpgroup),
        scale_(p.scale * kLog2E),
        turns_{group} {}

  AFNEXT_DEVICE void attend_all() {
    turns_.begin();
    while (enter()) attend();
    turns_.end();
  }

 private:
  using S = Shape<kDim>;
  using Place = Slot<S::kStages>;
  using ItemPlace = Slot<Shared<T, kDim>::kItems>;
  static constexpr int kSteps = S::kKeys / 16;
  using Weights = uint32_t[kSteps][4];

  // The next item, if there is one.
  AFNEXT_DEVICE bool enter() {
    if (!rounds_.has(round_)) return false;
    const ItemPlace place(round_++);
    arch::mbarrier_wait(&shared_.q_full[place.stage], place.parity);
    item_ = place.stage;
    const Work<kDim>& work = shared_.work[item_];
    key_ = work.key(0);
    last_key_ = work.key(work.tiles - 1);
    softmax_ = OnlineSoftmax();
    return true;
  }

  AFNEXT_DEVICE void attend() {
    Weights weights[S::kWeights];
    auto &even = weights[0], &odd = weights[S::kWeights - 1];  // registers have no index
    multiply_keys(tile_);
#pragma unroll
    for (float& sum : out_) sum = 0;
    wait_for_scores<0>(tile_);
    weigh(true, even);
#pragma unroll 1
    while (true) {
      if (key_ == last_key_) {
        multiply_values(tile_, even);
        break;
      }
      advance(even, odd);
      if (S::kWeights == 1) continue;
      if (key_ == last_key_) {
        multiply_values(tile_, odd);
        break;
      }
      advance(odd, even);
    }
    wait_for_sums();
    store_results<T, kDim>(shared_.q[item_][group_], p_, rows(), group_, out_, softmax_);
    __syncwarp();
    if (thread_ % arch::kWarp == 0) arch::mbarrier_arrive(&shared_.q_empty[item_]);
  }

  // From `now`, the weights of a tile, to those of the next. The next scores and these weights'
  // product with values go together: while the latter runs, the softmax of the former does, if
  // there are registers for its weights.
  AFNEXT_DEVICE void advance(const Weights& now, Weights& next) {
    key_ -= S::kKeys;
    multiply(now);
    const bool grew = weigh(false, next);
    wait_for_sums();
    if (grew) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out_[i] *= factor_[half_of(i)];
    }
  }

  AFNEXT_DEVICE void multiply(const Weights& now) {
    turns_.wait();
    multiply_keys(tile_ + 1);
    multiply_values(tile_, now);
    turns_.pass();
    wait_for_scores<S::kWeights - 1>(tile_ + 1);
  }
  AFNEXT_DEVICE void multiply_keys(unsigned tile) {
    const Place place(tile);
    const auto& queries = shared_.q[item_][group_];
    arch::mbarrier_wait(&shared_.k_full[place.stage], place.parity);
    arch::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      arch::wgmma_mma_async<arch::Major::k, arch::Major::k>(
          scores_, queries.channels(i), shared_.k[place.stage].channels(i), i > 0, T{});
    }
    arch::wgmma_commit_group();
  }
  AFNEXT_DEVICE void multiply_values(unsigned tile, const Weights& weights) {
    const Place place(tile);
    arch::mbarrier_wait(&shared_.v_full[place.stage], place.parity);
    arch::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      arch::wgmma_mma_async<arch::Major::mn>(out_, weights[i], shared_.v[place.stage].rows(i), true,
                                             T{});
    }
    arch::wgmma_commit_group();
  }
  template <int kPending>
  AFNEXT_DEVICE void wait_for_scores(unsigned tile) {
    arch::wgmma_wait_group<kPending>();
    arch::hold(scores_);
    release(shared_.k_empty, tile);
  }
  AFNEXT_DEVICE void wait_for_sums() {
    arch::wgmma_wait_group<0>();
    arch::hold(out_);
    release(shared_.v_empty, tile_++);
  }
  // Each warp knows for itself that its products are done.
  AFNEXT_DEVICE void release(uint64_t (&empty)[S::kStages], unsigned tile) {
    if (thread_ % arch::kWarp == 0) arch::mbarrier_arrive(&empty[Place(tile).stage]);
  }

  AFNEXT_DEVICE bool weigh(bool is_first, Weights& weights) {
    if (is_first) mask_ = RowMask(rows());
    mask_.apply(rows(), scores_, key_, thread_);
    return softmax_.weigh(scores_, scale_, is_first, weights, factor_, T{});
  }
  AFNEXT_DEVICE const Row* rows() const { return &shared_.rows[item_][group_ * kGroupRows]; }

  Shared<T, kDim>& shared_;
  const AttentionParams& p_;
  const Rounds& rounds_;
  int group_, thread_;
  float scale_;
  Turns<S::kConsumers> turns_;
  int round_ = 0;       // of the next item
  unsigned item_ = 0;   // its place
  unsigned tile_ = 0;   // of all the block's, the one whose weights there are
  int key_, last_key_;  // the first of the tile whose scores are made, and of the item's last
  RowMask mask_;
  OnlineSoftmax softmax_;
  float scores_[S::kKeys / 2], out_[kDim / 2], factor_[2];
};

// --- the kernel --------------------------------------------------------------------------------

template <typename T, int kDim>
__global__ void __launch_bounds__(Shape<kDim>::kThreads, 1)
    attention_kernel(const AttentionParams p, const __grid_constant__ arch::TensorMap map_k,
                     const __grid_constant__ arch::TensorMap map_v) {
  if constexpr (arch::kSm90a) {
    using S = Shape<kDim>;
    auto& shared = arch::shared_memory<Shared<T, kDim>>();
    const Rounds rounds(p);
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
        arch::mbarrier_init(&shared.q_full[i], QueryFetcher<T, kDim>::kThreads);
        arch::mbarrier_init(&shared.q_empty[i], kWarps);
      }
      arch::prefetch_tensor_map(map_k);
      arch::prefetch_tensor_map(map_v);
      arch::fence_mbarrier_init();
    }
    arch::griddepcontrol_wait();
    arch::griddepcontrol_launch_dependents();
    __syncthreads();
    if (threadIdx.x < S::kProducers * kWarpgroup) {
      arch::give_back_registers<S::kProducerRegisters>();
      if (warp > 0) return QueryFetcher<T, kDim>(shared, p).fetch_all(rounds);
      TileFetcher<T, kDim> fetcher(shared, map_k, map_v, p.key_tokens);
      for (int round = 0; rounds.has(round); ++round) {
        fetcher.fetch(Work<kDim>(rounds.item(round), p.group));
      }
    } else {
      arch::take_registers<S::kConsumerRegisters>();
      // From one lane, so that the compiler knows that all have the same: addresses then are
      // scalars.
      const int group =
          __shfl_sync(arch::kAllLanes, warp, 0) / (kWarpgroup / arch::kWarp) - S::kProducers;
      Consumer<T, kDim>(shared, p, rounds, group).attend_all();
    }
  } else {
    arch::trap();
  }
}

}  // namespace afnext::cuda::sm90
