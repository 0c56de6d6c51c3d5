// Attention on Hopper: the warp that fetches tiles of keys and values, by TMA.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/attention_sm90_tiles.h"

namespace afnext::cuda::sm90 {

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

}  // namespace afnext::cuda::sm90
