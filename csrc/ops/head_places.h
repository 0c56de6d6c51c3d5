// HeadShards as a kernel reads them: a plain struct, small enough to be a kernel's parameter.
#pragma once

#include <cstdint>

namespace afnext {

constexpr int kMaxPeers = 64;
constexpr int kMaxPlaces = 384;

// A place is one head of one rank, counted over all ranks.
struct HeadPlaces {
  int peers, places, heads;
  char* base[kMaxPeers];  // of each rank's [tokens, heads of the rank, D]
  uint16_t offset[kMaxPeers + 1];
  uint8_t peer[kMaxPlaces];
  uint16_t head[kMaxPlaces];
  // Places by head: those of head h are by_head[first[h]], .., by_head[first[h + 1] - 1].
  uint16_t by_head[kMaxPlaces];
  uint16_t first[kMaxPlaces + 1];
};

}  // namespace afnext
