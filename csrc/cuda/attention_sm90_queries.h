// Attention on Hopper: the warps that fetch queries, an item ahead. TMA can't: a block's rows are
// not a box of any tensor, and they turn on their way.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/arch/copy.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/attention_sm90_tiles.h"
#include "cuda/rotation.h"

namespace afnext::cuda::sm90 {

template <typename T, int kDim>
class QueryFetcher {
 public:
  using S = Shape<kDim>;
  // Those that tiles leave over.
  static constexpr int kThreads = S::kProducers * kWarpgroup - arch::kWarp;

  AFNEXT_DEVICE QueryFetcher(Shared<T, kDim>& shared, const AttentionParams& p)
      : shared_(shared), p_(p) {}

  // All items of a block, each when the results of the one before the last have left its place.
  AFNEXT_DEVICE void fetch_all(const Rounds& rounds) {
    for (int round = 0; rounds.has(round); ++round) {
      const Slot<Shared<T, kDim>::kItems> place(arch::opaque(round));
      arch::mbarrier_wait(&shared_.q_empty[place.stage], place.parity ^ 1);
      if (thread() == 0) shared_.work[place.stage] = Work<kDim>(rounds.item(round), p_.group);
      sync();
      fetch(place.stage);
      arch::fence_proxy_async();
      // Every thread for what it wrote: compute-sanitizer's racecheck does not follow one lane's
      // arrival behind a __syncwarp, and all of them cost no time that can be measured.
      arch::mbarrier_arrive(&shared_.q_full[arch::opaque(round) % Shared<T, kDim>::kItems]);
    }
  }

 private:
  using RowTile = Tile<T, kGroupRows, kDim>;
  static constexpr int kRowBytes = kPiece * sizeof(T);

  AFNEXT_DEVICE static int offset_of(int channel) {
    return channel / kPiece * static_cast<int>(RowTile::kPieceBytes) + channel % kPiece * 2;
  }

  AFNEXT_DEVICE static int thread() {
    return arch::opaque(static_cast<int>(threadIdx.x)) - arch::kWarp;
  }
  AFNEXT_DEVICE static void sync() { arch::bar_sync(kQueryBarrier, kThreads); }

  AFNEXT_DEVICE void fetch(unsigned item) {
    const Work<kDim>& work = shared_.work[item];
    copy(item, work);
#pragma unroll 1
    for (int row = thread(); row < S::kRows; row += kThreads) {
      const bool inside = work.first_row + row < work.end_row;
      const int at = inside ? work.first_row + row : work.end_row - 1;
      const int query = at / p_.group, head = work.kv_head * p_.group + at % p_.group;
      const int token = work.first_query + query;
      shared_.rows[item][row] = {work.band.first(query), work.band.end(query),
                                 inside ? token * p_.kv_heads * p_.group + head : -1,
                                 inside ? head * p_.query_tokens + token : -1};
    }
    turn_all(item, work);
  }

  AFNEXT_DEVICE void copy(unsigned item, const Work<kDim>& work) {
    constexpr int kUnits = kDim / 8, kStep = kThreads / kUnits;  // units of 16 bytes
    const int thread = QueryFetcher::thread(), channel = thread % kUnits * 8;
    const T* from = static_cast<const T*>(p_.q.data) + channel +
                    p_.q.at(work.first_query, work.kv_head * p_.group);
    RowWalk walk(work.first_row + thread / kUnits, kStep, p_.group);
#pragma unroll 1
    for (int row = thread / kUnits; row < S::kRows; row += kStep, walk.next()) {
      const bool inside = work.first_row + row < work.end_row;  // rows past the end are zeros
      arch::cp_async<16>(at(item, row, channel),
                         inside ? from + p_.q.at(walk.query, walk.head) : from, inside ? 16 : 0);
    }
    arch::cp_async_commit_group();
  }

  // A thread turns two pairs of channels, of every so many queries; phases serve all heads.
  AFNEXT_DEVICE void turn_all(unsigned item, const Work<kDim>& work) {
    const int twos = (p_.half + 1) / 2, step = twos > 0 ? kThreads / twos : 0;  // queries
    const int pair = twos > 0 ? thread() % twos * 2 : 0;
    const int end = (work.end_row - 1) / p_.group + 1;
    const int a = offset_of(p_.interleaved ? 2 * pair : pair);
    const int b = offset_of(p_.interleaved ? 2 * pair + 2 : pair + p_.half);
    int query = twos > 0 ? thread() / twos : 0;
    query = query < step ? work.first_row / p_.group + query : end;
    SinCos phases[2] = {{0, 1}, {0, 1}};
    const auto find_phases = [&] {
      const float time = p_.times_q[work.first_query + query];
      phases[0] = sincos_of(time, p_.inv_freq[pair]);
      if (pair + 1 < p_.half) phases[1] = sincos_of(time, p_.inv_freq[pair + 1]);
    };
    if (query < end) find_phases();  // while the copies come
    arch::cp_async_wait_group<0>();
    sync();
#pragma unroll 1
    while (query < end) {
      const int first = query * p_.group - work.first_row, rows = work.end_row - work.first_row;
      const int last = (first + p_.group < rows ? first + p_.group : rows) - 1;
#pragma unroll 1
      for (int row = first > 0 ? first : 0; row <= last; ++row) turn_two(item, row, a, b, phases);
      query += step;
      if (query < end) find_phases();
    }
  }
  // By the offsets of two words of four channels; a row's units change places by its number.
  AFNEXT_DEVICE void turn_two(unsigned item, int row, int a_at, int b_at,
                              const SinCos (&phases)[2]) {
    auto* from = reinterpret_cast<unsigned char*>(&shared_.q[item]) + row * kRowBytes +
                 row / kGroupRows * (RowTile::kBytes - RowTile::kPieceBytes);
    auto* a = reinterpret_cast<uint32_t*>(from + (a_at ^ row % 8 * 16));
    auto* b = reinterpret_cast<uint32_t*>(from + (b_at ^ row % 8 * 16));
    float2 x = arch::unpack(*a, T{}), y = arch::unpack(*b, T{});
    if (p_.interleaved) {
      turn(phases[0], &x.x, &x.y);
      turn(phases[1], &y.x, &y.y);
    } else {
      turn(phases[0], &x.x, &y.x);
      turn(phases[1], &x.y, &y.y);
    }
    *a = arch::pack(x.x, x.y, T{});
    *b = arch::pack(y.x, y.y, T{});
  }
  AFNEXT_DEVICE T* at(unsigned item, int row, int channel) {
    return shared_.q[item][row / kGroupRows].at(row % kGroupRows, channel);
  }

  Shared<T, kDim>& shared_;
  const AttentionParams& p_;
};

}  // namespace afnext::cuda::sm90
