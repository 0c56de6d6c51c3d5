#include "afnext/all_to_all.h"

#include <string>

#include "afnext/error.h"
#include "cpu/all_to_all.h"
#include "cuda/all_to_all.h"
#include "cuda/backend.h"

namespace afnext {

constinit cpu::KernelTable<cpu::AllToAllArgs> cpu::all_to_all_kernels;

namespace {

HeadPlaces check_shards(const Check& check, const HeadShards& shards, int64_t heads) {
  const auto& offsets = shards.offsets;
  const int64_t peers = static_cast<int64_t>(offsets.size()) - 1;
  check.require(peers >= 1 && peers <= kMaxPeers, "head_offsets must be of 1 to 64 ranks");
  const auto places = static_cast<int64_t>(shards.heads.size());
  bool rising = offsets.front() == 0 && offsets.back() == places;
  for (int64_t p = 0; p < peers; ++p) rising = rising && offsets[p] <= offsets[p + 1];
  if (!rising) {
    check.fail("head_offsets must rise from 0 to " + std::to_string(places) + " without falling");
  }
  check.require(places <= kMaxPlaces && heads <= kMaxPlaces, "at most 384 heads are supported");
  HeadPlaces table{};
  table.peers = static_cast<int>(peers);
  table.places = static_cast<int>(places);
  table.heads = static_cast<int>(heads);
  for (int64_t p = 0; p <= peers; ++p) table.offset[p] = static_cast<uint16_t>(offsets[p]);
  for (int64_t s = 0, p = 0; s < places; ++s) {
    while (s >= offsets[p + 1]) ++p;
    const int64_t head = shards.heads[s];
    if (head < 0 || head >= heads) {
      check.fail("heads names head " + std::to_string(head) + " of " + std::to_string(heads));
    }
    table.peer[s] = static_cast<uint8_t>(p);
    table.head[s] = static_cast<uint16_t>(head);
  }
  int found = 0;
  for (int64_t h = 0; h < heads; ++h) {
    table.first[h] = static_cast<uint16_t>(found);
    for (int64_t s = 0; s < places; ++s) {
      if (table.head[s] == h) table.by_head[found++] = static_cast<uint16_t>(s);
    }
  }
  table.first[heads] = static_cast<uint16_t>(found);
  return table;
}

// Where each rank's rows begin: in `buffer`, or at the peers.
void place(const Check& check, const TensorView& about, const PeerBuffers& peers,
           const TensorView* buffer, const char* name, HeadPlaces* table) {
  const int64_t tokens = about.shape[0], dim = about.shape[2], row = dim * dtype_size(about.dtype);
  check.require(tokens * kMaxPlaces <= INT32_MAX, "at most 5 million tokens are supported");
  if (peers.addresses.empty()) {
    check.require(buffer != nullptr, "give a buffer, or peers");
    check.exact(*buffer, name, about.dtype, {tokens * table->places, dim});
  } else {
    check.require(buffer == nullptr, "give a buffer or peers, not both");
    check.require(static_cast<int>(peers.addresses.size()) == table->peers,
                  "peers must name an address a rank");
    check.require(peers.first_token >= 0, "first_token must not be negative");
  }
  for (int p = 0; p < table->peers; ++p) {
    const int64_t heads = table->offset[p + 1] - table->offset[p];
    if (buffer != nullptr) {
      table->base[p] = buffer->as<char>() + tokens * table->offset[p] * row;
      continue;
    }
    const int64_t address = peers.addresses[p];
    check.require(heads == 0 || (address != 0 && address % 16 == 0),
                  "peers' addresses must be multiples of 16, not null");
    table->base[p] = reinterpret_cast<char*>(address) + peers.first_token * heads * row;
  }
}

}  // namespace

void all_to_all_pack(const TensorView& x, const HeadShards& shards, const PeerBuffers& peers,
                     const TensorView* out, Stream stream) {
  const Check check("all_to_all_pack", x);
  check.floating(x, "x", 3);
  HeadPlaces table = check_shards(check, shards, x.shape[1]);
  place(check, x, peers, out, "out", &table);
  if (x.shape[0] * x.shape[2] * table.places == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(x)) return cuda::all_to_all_pack(x, table, stream);
  }
  cpu::all_to_all_kernels(
      {x.dtype, x.shape[0], x.shape[2], x.stride[0], x.stride[1], x.data, &table, false});
}

void all_to_all_unpack(const TensorView* x, const HeadShards& shards, const PeerBuffers& peers,
                       const TensorView& out, Stream stream) {
  const Check check("all_to_all_unpack", out);
  if (x != nullptr) check.floating(*x, "x", 2);
  check.floating(out, "out", 3);
  check.contiguous(out, "out");
  HeadPlaces table = check_shards(check, shards, out.shape[1]);
  place(check, out, peers, x, "x", &table);
  if (out.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(out)) return cuda::all_to_all_unpack(table, out, stream);
  }
  cpu::all_to_all_kernels({out.dtype, out.shape[0], out.shape[2], out.stride[0], out.stride[1],
                           out.data, &table, true});
}

}  // namespace afnext
