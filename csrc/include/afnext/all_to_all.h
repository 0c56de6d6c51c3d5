#pragma once

#include <cstdint>
#include <vector>

#include "afnext/tensor.h"

namespace afnext {

// Which heads each of P ranks works on, where a sequence's tokens are spread over them (Ulysses):
// rank p has heads[offsets[p]], .., heads[offsets[p + 1] - 1]. Ranks may have different numbers of
// heads, and a head may have several ranks (of fewer key heads than ranks). At most 64 ranks, 384
// heads over all ranks and in a tensor.
struct HeadShards {
  std::vector<int64_t> offsets;  // [P + 1], from 0, never falls
  std::vector<int64_t> heads;    // [offsets[P]]
};

// Memory that ranks can reach on one another: where each rank's buffer begins, and at which of its
// tokens this call's begin. Empty: none.
struct PeerBuffers {
  std::vector<int64_t> addresses;  // [P], multiples of 16, or empty
  int64_t first_token = 0;
};

// x [T, H, D] into a contiguous [T, heads of p, D] for each rank p: what an all-to-all from tokens
// to heads sends. They follow one another in `out`, [T * S, D] with S = offsets[P]; given `peers`,
// `out` is null and rank p's begins at peers.addresses[p] + first_token tokens: in its
// [total tokens, heads of p, D], which needs no further move.
//
//   x: float32 or bfloat16 (on CUDA also float16), any strides but unit stride in D.
void all_to_all_pack(const TensorView& x, const HeadShards& shards, const PeerBuffers& peers,
                     const TensorView* out, Stream stream = {});

// The way back, and the gradient of packing: out [T, H, D] from each rank's [T, heads of p, D], in
// `x` [T * S, D] one after another or at `peers`. A head that several ranks have is summed, in
// float32 and in the order of ranks; one that none has is 0.
void all_to_all_unpack(const TensorView* x, const HeadShards& shards, const PeerBuffers& peers,
                       const TensorView& out, Stream stream = {});

}  // namespace afnext
