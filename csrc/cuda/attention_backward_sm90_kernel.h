// Backward attention for Hopper: all gradients in one pass, and the same bits each time.
//
// A block keeps 128 keys of a KV head while tiles of 64 rows (queries x the heads that share the KV
// head) stream past. Two warpgroups multiply, each for 64 of the keys:
//   scores = k q, weights = exp(..), grad_v += weights grad_out, grads = v grad_out - delta, ..,
//   grad_k += grads q,
// all of them keys x rows, so that weights go from registers into the next product; and of what
// both have stored of the scores' gradients each makes half the channels of the tile's grad_q =
// grads k.
//
// Why one pass: 5 products a tile, where a pass for keys and one for rows have 7. grad_q is added
// up in float32 in global memory, in the L2 for the most part, by the copy engine. For the same
// bits each time blocks add to a tile in turns, those of earlier keys first. A block waits for
// blocks that were started before it, and they for others before them, so somebody always goes on;
// as neighbours work their way through the same rows one behind the other, a turn has nearly always
// come. A block of keys whose rows are shared by several blocks is added up in turns too.
//
// What runs under what:
// - Copies under everything: a ring of three tiles by TMA; the sums of grad_q by two threads.
// - The next tile's scores are asked for before this one's last two products, so that their
//   exponentials run under these; the first ones' end under those of grad_v.
//
// For a tile of 64 rows at D = 128, in clocks of a multiprocessor: tensor cores 2,560 (5 products
// of 64 x 128 x 128 at 2,048 multiply-adds a clock); shared memory at 128 bytes a clock 3,072, the
// limit: operands 2,176, rows and scores' gradients that come 384, grad_q there and out 512;
// exponentials 512. On an H200 (causal, 28 heads on 4 KV heads, 8,192 tokens) a tile takes 4,100.
// Bytes: a tile's q and grad_out (32 KB), as much added to its sums, mostly to and from the L2.
//
// Registers: 240 for who multiplies (64 each of grad_k and grad_v, 32 each of the next scores and
// of what becomes grad_q, 16 of packed weights), 24 for the others: grad_k's left side comes from
// shared memory, as there is no room for it. Shared memory: 226 KB, one block a multiprocessor.
//
// At D = 64 (all head dims up to it; those from 97 to 128 are 128's) tensor cores take half, 1,280
// clocks, and so do sums; exponentials still 512. Shared memory: 130 KB, but the registers are the
// same, and so it is one block there too.
#pragma once

#include "cuda/arch/matrix.h"
#include "cuda/arch/numbers.h"
#include "cuda/attention_backward_sm90_copies.h"

namespace afnext::cuda::backward_sm90 {

// Named barrier of both warpgroups that multiply.
constexpr int kConsumerBarrier = 1;

// A product's registers to 64 rows' sums, or as their first value.
template <int kSums>
AFNEXT_DEVICE void add(float4 (*sums)[kWarpgroup], int thread, bool is_first,
                       const float (&more)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums / 4; ++i) {
    const float4 four{more[4 * i], more[4 * i + 1], more[4 * i + 2], more[4 * i + 3]};
    if (is_first) {
      sums[i][thread] = four;
    } else {
      arch::add_to(&sums[i][thread], four);
    }
  }
}

template <typename T, int kDim>
class Consumer {
 public:
  AFNEXT_DEVICE Consumer(Shared<kDim>& shared, const Params& p)
      : shared_(shared),
        p_(p),
        group_(__shfl_sync(arch::kAllLanes, static_cast<int>(threadIdx.x) / kWarpgroup, 0) - 1) {
    const Work& work = shared.work;
    const int first = first_key(), end = smaller(first + kGroupKeys, work.meetings.band.keys);
    if (end == first + kGroupKeys) {
      met_by_all_ = {work.meetings.rows_of(end - 1).low, work.meetings.rows_of(first).high};
    }
  }

  AFNEXT_DEVICE void run() {
    load_keys();
    clear_behind_rows();
    float grad_k[kDim / 2] = {}, grad_v[kDim / 2] = {};
    arch::hold(
        grad_k);  // or the compiler, knowing zeros, makes a loop of its own of the first turn
    arch::hold(grad_v);
    float scores[kTileRows / 2];
    const Work& work = shared_.work;
    const int tiles = work.tiles(), tile_rows = p_.tile_queries * p_.all.group;
    int first = work.tile(0) * tile_rows;  // row of the tile whose scores come next
    wait_for_rows(0);
    multiply_keys(0, scores);
    arch::wgmma_wait_group<0>();
    arch::hold(scores);
    {
      float2 lse[kTileRows / 8];
      read(shared_.softmax[0].lse, lse);
      weigh(scores, first, lse);
    }
    uint32_t weights[kSteps][4];  // the last tile's are waited for behind the loop
    int n = 0;
#pragma unroll 1
    while (true) {
      const auto& stage = shared_.stages[Slot<kStages>(n).at];
      // What the softmax needs is read ahead of products, which loads would queue behind.
      float2 delta[kTileRows / 8];
      read(shared_.softmax[Slot<kStages>(n).at].delta, delta);
      float grads[kTileRows / 2];
      arch::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        arch::wgmma_mma_async<kK, kK>(grads, shared_.v.channels(group_ * kGroupKeys, k),
                                      stage.grad_out.channels(0, k), k > 0, T{});
      }
      arch::wgmma_commit_group();
      pack(scores, weights);
      arch::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        arch::wgmma_mma_async<kMn>(grad_v, weights[k], stage.grad_out.rows(0, k), true, T{});
      }
      arch::wgmma_commit_group();
      arch::wgmma_wait_group<1>();
      arch::hold(grads);
      differentiate(grads, scores, delta);
      store(grads, n % 2);
      if (n + 1 == tiles) break;
      wait_for_rows(n + 1);
      float2 lse[kTileRows / 8];
      read(shared_.softmax[Slot<kStages>(n + 1).at].lse, lse);
      multiply_keys(n + 1, scores);
      arch::wgmma_wait_group<1>();
      arch::hold(grad_v);
      float grad_q[kDim / 4];
      multiply_score_gradients(n, grad_q, grad_k);
      arch::wgmma_wait_group<2>();
      arch::hold(scores);
      first -= tile_rows;
      weigh(scores, first, lse);
      arch::wgmma_wait_group<1>();
      arch::hold(grad_q);
      hand_over(n, grad_q);
      arch::wgmma_wait_group<0>();
      arch::hold(grad_k);
      release(n);
      ++n;
    }
    arch::wgmma_wait_group<0>();
    arch::hold(grad_v);
    float grad_q[kDim / 4];
    multiply_score_gradients(n, grad_q, grad_k);
    arch::wgmma_wait_group<1>();
    arch::hold(grad_q);
    hand_over(n, grad_q);
    arch::wgmma_wait_group<0>();
    arch::hold(grad_k);
    add_key_gradients(grad_k, grad_v);
  }

 private:
  static constexpr auto kK = arch::Major::k, kMn = arch::Major::mn;
  static constexpr int kSteps = kTileRows / 16;

  AFNEXT_DEVICE int first_key() const { return shared_.work.first_key + group_ * kGroupKeys; }
  // Read again where it is needed: the loop has no registers for it.
  AFNEXT_DEVICE static int thread() {
    return arch::opaque(static_cast<int>(threadIdx.x)) & (kWarpgroup - 1);
  }
  AFNEXT_DEVICE static int lane() { return thread() & (arch::kWarp - 1); }
  // The thread's keys are this one of the block's and 8 more.
  AFNEXT_DEVICE int own_key() const {
    return group_ * kGroupKeys + thread() / arch::kWarp * 16 + lane() / 4;
  }

  AFNEXT_DEVICE void load_keys() {
    constexpr int kChunks = kDim / 8, kStep = kConsumers * kWarpgroup / kChunks;
    const Work& work = shared_.work;
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, chunk = thread % kChunks;
#pragma unroll 4
    for (int row = thread / kChunks; row < kBlockKeys; row += kStep) {
      const bool real = work.first_key + row < work.meetings.band.keys && 8 * chunk < p_.all.dim;
      const Place from = work.key_places(real ? work.first_key + row : 0);
      const int channel = real ? 8 * chunk : 0, bytes = real ? 16 : 0;
      const auto copy = [&](Tile<kBlockKeys, kDim>& to, const Heads& heads) {
        arch::cp_async<16>(
            to.at(row, chunk),
            static_cast<const uint16_t*>(heads.data) + heads.at(from.token, from.head) + channel,
            bytes);
      };
      copy(shared_.k, p_.all.k);
      copy(shared_.v, p_.all.v);
    }
    arch::cp_async_commit_group();
    arch::cp_async_wait_group<0>();
    arch::fence_proxy_async();
    arch::bar_sync(kConsumerBarrier, kConsumers * kWarpgroup);
  }

  AFNEXT_DEVICE void wait_for_rows(int n) {
    const Slot<kStages> slot(static_cast<unsigned>(n));
    arch::mbarrier_wait(&shared_.full[slot.at], slot.parity);
  }

  AFNEXT_DEVICE void multiply_keys(int n, float (&scores)[kTileRows / 2]) {
    const Slot<kStages> slot(static_cast<unsigned>(n));
    arch::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      arch::wgmma_mma_async<kK, kK>(scores, shared_.k.channels(group_ * kGroupKeys, k),
                                    shared_.stages[slot.at].q.channels(0, k), k > 0, T{});
    }
    arch::wgmma_commit_group();
  }

  // Behind the sequence's last row lie another's, or nobody's: their weights are 0, but 0 times NaN
  // is not. (Behind the last of all, copies bring zeros.) The first tile is the one that has any.
  AFNEXT_DEVICE void clear_behind_rows() {
    const Work& work = shared_.work;
    const int rows = work.meetings.rows() - work.tile(0) * work.tile_rows();
    if (rows >= work.tile_rows()) return;
    constexpr int kChunks = kDim / 8;
    auto& stage = shared_.stages[0];
    arch::mbarrier_wait(&shared_.full[0], 0);
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
#pragma unroll 1
    for (int i = rows * kChunks + thread; i < kTileRows * kChunks; i += kConsumers * kWarpgroup) {
      *reinterpret_cast<uint4*>(stage.q.at(i / kChunks, i % kChunks)) = {};
      *reinterpret_cast<uint4*>(stage.grad_out.at(i / kChunks, i % kChunks)) = {};
    }
    arch::fence_proxy_async();
    arch::bar_sync(kConsumerBarrier, kConsumers * kWarpgroup);
  }

  // Once both warpgroups have stored them.
  AFNEXT_DEVICE void multiply_score_gradients(int n, float (&grad_q)[kDim / 4],
                                              float (&grad_k)[kDim / 2]) {
    const auto& stage = shared_.stages[Slot<kStages>(n).at];
    arch::bar_sync(kConsumerBarrier, kConsumers * kWarpgroup);
    arch::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockKeys / 16; ++k) {
      arch::wgmma_mma_async<kMn, kMn>(grad_q, shared_.scores[n % 2].rows(0, k),
                                      shared_.k.rows(group_ * (kDim / kConsumers), k), k > 0, T{});
    }
    arch::wgmma_commit_group();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      arch::wgmma_mma_async<kK, kMn>(grad_k, shared_.scores[n % 2].channels(group_ * kGroupKeys, k),
                                     stage.q.rows(0, k), true, T{});
    }
    arch::wgmma_commit_group();
  }

  // What the softmax needs of a thread's columns, in order.
  AFNEXT_DEVICE static void read(const float (&from)[kTileRows], float2 (&to)[kTileRows / 8]) {
    const float* own = from + 2 * (lane() & 3);
#pragma unroll
    for (int i = 0; i < kTileRows / 8; ++i) to[i] = *reinterpret_cast<const float2*>(own + 8 * i);
  }

  // From scores, keys x rows from `first` on, to weights: 0 where they do not meet.
  AFNEXT_DEVICE void weigh(float (&scores)[kTileRows / 2], int first,
                           const float2 (&lse)[kTileRows / 8]) const {
    const float scale = p_.all.scale * kLog2E;
#pragma unroll
    for (int i = 0; i < kTileRows / 2; ++i) {
      const float2& both = lse[i / 4];
      scores[i] = arch::exp2_approx(fmaf(scores[i], scale, -(i % 2 == 0 ? both.x : both.y)));
    }
    if (met_by_all_.low <= first && first + kTileRows <= met_by_all_.high) return;
    const Meetings& all = shared_.work.meetings;
    const int column = 2 * (lane() & 3);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = shared_.work.first_key + own_key() + 8 * half;
      const Interval seen = key < all.band.keys ? all.rows_of(key) : Interval{0, 0};
#pragma unroll
      for (int i = 0; i < kTileRows / 2; ++i) {
        const int row = first + i / 4 * 8 + column + i % 2;
        if (i / 2 % 2 == half && (row < seen.low || row >= seen.high)) scores[i] = 0.0f;
      }
    }
  }

  AFNEXT_DEVICE static void differentiate(float (&grads)[kTileRows / 2],
                                          const float (&weights)[kTileRows / 2],
                                          const float2 (&delta)[kTileRows / 8]) {
#pragma unroll
    for (int i = 0; i < kTileRows / 2; ++i) {
      const float2& both = delta[i / 4];
      grads[i] = weights[i] * (grads[i] - (i % 2 == 0 ? both.x : both.y));
    }
  }

  AFNEXT_DEVICE static void pack(const float (&sums)[kTileRows / 2], uint32_t (&to)[kSteps][4]) {
#pragma unroll
    for (int i = 0; i < kTileRows / 4; ++i) {
      to[i / 4][i % 4] = arch::pack(sums[2 * i], sums[2 * i + 1], T{});
    }
  }

  // Gradients of scores to shared memory, keys x rows.
  AFNEXT_DEVICE void store(const float (&grads)[kTileRows / 2], int side) {
    auto& tile = shared_.scores[side];
    // Of four matrices, this lane's row and chunk of 8 columns.
    const int lane = this->lane(), key = thread() / arch::kWarp * 16 + (lane & 15);
    const int row = group_ * kGroupKeys + key, chunk = lane / 16;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] = arch::pack(grads[8 * k + 2 * i], grads[8 * k + 2 * i + 1], T{});
      }
      arch::stmatrix(tile.at(row, 2 * k + chunk), four);
    }
    arch::fence_proxy_async();
  }

  // By one lane of each warp. All threads' own reads of the stage, lse and delta, come before the
  // barrier in multiply_score_gradients, which is behind them for every lane here; what products
  // read, each warp has waited for. compute-sanitizer's racecheck, which does not take a barrier
  // and another thread's arrival at an mbarrier together, reports the stage's next copy at D = 128.
  AFNEXT_DEVICE void release(int n) {
    if (lane() == 0) arch::mbarrier_arrive(&shared_.empty[Slot<kStages>(n).at]);
  }

  // For who adds it to the sums, once the last tile's is gone.
  AFNEXT_DEVICE void hand_over(int n, const float (&grad_q)[kDim / 4]) {
    if (n > 0) {
      const Slot<2> last(static_cast<unsigned>(n - 1));
      arch::mbarrier_wait(&shared_.taken[last.at], last.parity);
    }
    auto* to = &shared_.grad_q.at[group_ * (kDim / 16)][thread()];
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      to[i * kWarpgroup] = {grad_q[4 * i], grad_q[4 * i + 1], grad_q[4 * i + 2], grad_q[4 * i + 3]};
    }
    arch::fence_proxy_async();
    __syncwarp();
    if (lane() == 0) arch::mbarrier_arrive(&shared_.written[n % 2]);
  }

  AFNEXT_DEVICE void add_key_gradients(const float (&grad_k)[kDim / 2],
                                       const float (&grad_v)[kDim / 2]) {
    const Work& work = shared_.work;
    constexpr int kWarps = kConsumers * kWarpgroup / arch::kWarp;
    uint32_t* turn =
        p_.key_turns + work.block_sums * kWarps + (group_ * kWarpgroup + thread()) / arch::kWarp;
    if (lane() == 0) {
      while (arch::load_acquire(turn) < static_cast<uint32_t>(work.turn)) {
      }
    }
    __syncwarp();
    const int64_t at = work.block_sums * kConsumers + group_;
    add(static_cast<SumTile<kDim>*>(p_.grad_k)[at].at, thread(), work.turn == 0, grad_k);
    add(static_cast<SumTile<kDim>*>(p_.grad_v)[at].at, thread(), work.turn == 0, grad_v);
    __syncwarp();
    if (lane() == 0) arch::add_release(turn, 1);
  }

  Shared<kDim>& shared_;
  const Params& p_;
  int group_;
  Interval met_by_all_{0, 0};  // the rows that all of the warpgroup's keys meet
};

template <typename T, int kDim>
AFNEXT_DEVICE void run_block(const Params& p, const arch::TensorMap& map_q,
                             const arch::TensorMap& map_grad_out) {
  auto& shared = arch::shared_memory<Shared<kDim>>();
  const int warp = static_cast<int>(threadIdx.x) / arch::kWarp;
  if (threadIdx.x == 0) {
    shared.work = Work(p, p.items[blockIdx.x]);
    constexpr int kConsumerWarps = kConsumers * kWarpgroup / arch::kWarp;
    for (int i = 0; i < kStages; ++i) {
      arch::mbarrier_init(&shared.full[i], kFetchers);
      arch::mbarrier_init(&shared.empty[i], kConsumerWarps);
    }
    for (int i = 0; i < 2; ++i) {
      arch::mbarrier_init(&shared.written[i], kConsumerWarps);
      arch::mbarrier_init(&shared.taken[i], 1);
    }
    arch::fence_mbarrier_init();
  }
  clear_ends<kDim>(shared, p.tile_queries * p.all.group);
  __syncthreads();
  constexpr int kFetcherRegisters = 24, kConsumerRegisters = 240;
  if (warp < kWarpgroup / arch::kWarp) {
    arch::give_back_registers<kFetcherRegisters>();
    if (warp == kSoftmaxFetcher) {
      fetch_softmax<kDim>(shared);
    } else if (threadIdx.x == kRowFetcher * arch::kWarp) {
      fetch_rows<kDim>(shared, p, map_q, map_grad_out);
    } else if (warp >= kFirstAdder && threadIdx.x % arch::kWarp == 0) {
      add_row_gradients<kDim>(shared, p, warp - kFirstAdder);
    }
  } else {
    arch::take_registers<kConsumerRegisters>();
    Consumer<T, kDim>(shared, p).run();
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_kernel(const Params p, const __grid_constant__ arch::TensorMap map_q,
                              const __grid_constant__ arch::TensorMap map_grad_out) {
  if constexpr (arch::kSm90a) {
    run_block<T, kDim>(p, map_q, map_grad_out);
  } else {
    arch::trap();
  }
}

}  // namespace afnext::cuda::backward_sm90
