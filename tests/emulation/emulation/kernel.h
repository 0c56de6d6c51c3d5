// What a CUDA kernel sees when a plain C++ compiler builds it: include this first.
//
// The vocabulary of CUDA C++ keeps its own names. Instructions that CUDA C++ has no name for are
// functions of namespace emulation, named after the PTX that they stand for.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulation/atomics.h"
#include "emulation/block.h"
#include "emulation/vocabulary.h"

namespace emulation {

// An argument after these is where the caller stands.
using Here = std::source_location;

inline void call_warp(Collective operation, uint32_t mask, void* argument, const Where& where) {
  Block::current().warp().meet(operation, mask, argument, where);
}

// --- shared memory -------------------------------------------------------------------------------

// The block's dynamic shared memory, 1,024-byte aligned; a Layout gives its parts names.
template <typename Layout>
Layout& shared_memory() {
  return *reinterpret_cast<Layout*>(Block::current().shared.data());
}
// A generic address in the 32-bit window, and back.
inline uint32_t shared_address(const void* p) { return Block::current().shared.address(p); }
inline void* shared_pointer(uint32_t address) { return Block::current().shared.data() + address; }

// --- barriers ------------------------------------------------------------------------------------

inline void bar_sync(int id, int threads, Here here = Here::current()) {
  Block::current().barrier_sync(id, threads, here);
}
inline void bar_arrive(int id, int threads, Here here = Here::current()) {
  Block::current().barrier_arrive(id, threads, here);
}
inline void mbarrier_init(uint64_t* barrier, int arrivals, Here here = Here::current()) {
  Block::current().mbarriers.init(barrier, arrivals, here);
}
inline void mbarrier_inval(uint64_t* barrier, Here here = Here::current()) {
  Block::current().mbarriers.invalidate(barrier, here);
}
inline void mbarrier_arrive(uint64_t* barrier, Here here = Here::current()) {
  Block::current().mbarriers.arrive(barrier, 0, here);
}
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes,
                                      Here here = Here::current()) {
  Block::current().mbarriers.arrive(barrier, bytes, here);
}
inline bool mbarrier_test_wait(const uint64_t* barrier, int parity, Here here = Here::current()) {
  return Block::current().mbarriers.test(barrier, parity, here);
}
inline void mbarrier_wait(const uint64_t* barrier, int parity, Here here = Here::current()) {
  Block::current().mbarriers.wait(barrier, parity, here);
}
// Hands what this thread wrote to instructions of the asynchronous proxy: TMA and wgmma.
inline void fence_proxy_async() {
  const Thread& thread = Block::current().thread();
  Block::current().races.fence_async(thread.warp, thread.lane);
}

// Until the kernels before in the stream have ended, for one that was launched early.
inline void griddepcontrol_wait() { Block::current().griddepcontrol_wait(); }

// --- copies --------------------------------------------------------------------------------------

template <int bytes>
void cp_async(void* shared, const void* global, int source_bytes = bytes,
              Here here = Here::current()) {
  Block::current().thread().copies.issue(shared, global, bytes, source_bytes, here);
}
inline void cp_async_commit_group() { Block::current().thread().copies.commit(); }
template <int pending>
void cp_async_wait_group() {
  Block::current().thread().copies.wait(pending);
}

inline void cp_async_bulk_tensor_load(const TensorMap& map, const TensorCopies::Corner& corner,
                                      void* shared, uint64_t* barrier,
                                      Here here = Here::current()) {
  Block::current().tensor_copies.load(map, corner, shared, barrier, here);
}
inline void cp_async_bulk_tensor_store(const TensorMap& map, const TensorCopies::Corner& corner,
                                       const void* shared, Here here = Here::current()) {
  Block::current().tensor_copies.store(map, corner, shared, here);
}
inline void cp_async_bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                               Here here = Here::current()) {
  Block::current().tensor_copies.load_bytes(global, bytes, shared, barrier, here);
}
inline void cp_async_bulk_store(void* global, const void* shared, uint32_t bytes,
                                Here here = Here::current()) {
  Block::current().tensor_copies.store_bytes(global, bytes, shared, here);
}
inline void cp_reduce_async_bulk_add(void* global, const void* shared, uint32_t bytes,
                                     Here here = Here::current()) {
  Block::current().tensor_copies.add_floats(global, bytes, shared, here);
}
inline void cp_async_bulk_commit_group() { Block::current().tensor_copies.commit(); }
template <int pending>
void cp_async_bulk_wait_group() {
  Block::current().tensor_copies.wait(pending);
}
template <int pending>
void cp_async_bulk_wait_group_read() {
  Block::current().tensor_copies.wait_read(pending);
}

// --- matrices ------------------------------------------------------------------------------------

template <int count>
void ldmatrix(uint32_t (&registers)[count], const void* row, bool transposed = false,
              Here here = Here::current()) {
  static_assert(count == 1 || count == 2 || count == 4);
  MatrixMove call{const_cast<void*>(row), registers, count, transposed};
  call_warp(load_matrix, kAllLanes, &call, here);
}
template <int count>
void stmatrix(void* row, const uint32_t (&registers)[count], bool transposed = false,
              Here here = Here::current()) {
  static_assert(count == 1 || count == 2 || count == 4);
  MatrixMove call{row, const_cast<uint32_t*>(registers), count, transposed};
  call_warp(store_matrix, kAllLanes, &call, here);
}
// m16n8, k of 32 bytes: d += a @ b, float32 (int32 for s8).
template <typename Sum>
void mma_sync(Element element, Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              Here here = Here::current()) {
  static_assert(std::is_same_v<Sum, float> || std::is_same_v<Sum, int32_t>);
  MatrixProduct call{d, a, b, d, element};
  call_warp(multiply_matrix, kAllLanes, &call, here);
}

inline void wgmma_fence(Here here = Here::current()) {
  call_warp([](Warp& warp, uint32_t, const Arguments&, const Where&) { warp.group.fence(); },
            kAllLanes, nullptr, here);
}
inline void wgmma_commit_group(Here here = Here::current()) {
  call_warp([](Warp& warp, uint32_t, const Arguments&, const Where&) { warp.group.commit(); },
            kAllLanes, nullptr, here);
}
template <int pending>
void wgmma_wait_group(Here here = Here::current()) {
  call_warp([](Warp& warp, uint32_t, const Arguments&, const Where&) { warp.group.wait(pending); },
            kAllLanes, nullptr, here);
}
inline void wgmma_mma_async(WarpgroupProduct product, Here here = Here::current()) {
  call_warp([](Warp& warp, uint32_t, const Arguments& all,
               const Where& where) { warp.group.issue(all, where); },
            kAllLanes, &product, here);
}

// --- lanes ---------------------------------------------------------------------------------------

template <typename T>
T shuffle_lanes(Shuffle::Kind kind, uint32_t mask, T value, int operand, int width,
                const Where& where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof(T));
  for (uint32_t& word : words) {
    Shuffle call{kind, word, operand, width};
    call_warp(shuffle, mask, &call, where);
    word = call.value;
  }
  std::memcpy(&value, words, sizeof(T));
  return value;
}
inline uint32_t ballot_lanes(uint32_t mask, bool predicate, const Where& where) {
  Vote call{predicate, 0};
  call_warp(vote, mask, &call, where);
  return call.ballot;
}
template <typename T>
T reduce_lanes(Reduction::Kind kind, uint32_t mask, T value, const Where& where) {
  Reduction call{kind, static_cast<uint32_t>(value)};
  call_warp(reduce, mask, &call, where);
  return static_cast<T>(call.value);
}

}  // namespace emulation

#define threadIdx (::emulation::Block::current().thread().index)
#define blockIdx (::emulation::Block::current().index)
#define blockDim (::emulation::Block::current().shape)
#define gridDim (::emulation::Block::current().grid)

inline void __syncthreads(emulation::Here here = emulation::Here::current()) {
  emulation::Block::current().barrier_sync(0, 0, here);
}
inline void __syncwarp(uint32_t mask = emulation::kAllLanes,
                       emulation::Here here = emulation::Here::current()) {
  emulation::call_warp(emulation::sync_warp, mask, nullptr, here);
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32,
              emulation::Here here = emulation::Here::current()) {
  return emulation::shuffle_lanes(emulation::Shuffle::indexed, mask, value, lane, width, here);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int by, int width = 32,
                 emulation::Here here = emulation::Here::current()) {
  return emulation::shuffle_lanes(emulation::Shuffle::up, mask, value, by, width, here);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int by, int width = 32,
                   emulation::Here here = emulation::Here::current()) {
  return emulation::shuffle_lanes(emulation::Shuffle::down, mask, value, by, width, here);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int by, int width = 32,
                  emulation::Here here = emulation::Here::current()) {
  return emulation::shuffle_lanes(emulation::Shuffle::exclusive_or, mask, value, by, width, here);
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate,
                              emulation::Here here = emulation::Here::current()) {
  return emulation::ballot_lanes(mask, predicate, here);
}
inline bool __any_sync(uint32_t mask, bool predicate,
                       emulation::Here here = emulation::Here::current()) {
  return emulation::ballot_lanes(mask, predicate, here) != 0;
}
inline bool __all_sync(uint32_t mask, bool predicate,
                       emulation::Here here = emulation::Here::current()) {
  return emulation::ballot_lanes(mask, predicate, here) == mask;
}
inline unsigned __reduce_add_sync(uint32_t mask, unsigned value,
                                  emulation::Here here = emulation::Here::current()) {
  return emulation::reduce_lanes(emulation::Reduction::add, mask, value, here);
}
inline unsigned __reduce_max_sync(uint32_t mask, unsigned value,
                                  emulation::Here here = emulation::Here::current()) {
  return emulation::reduce_lanes(emulation::Reduction::max, mask, value, here);
}

// Atomics on one OS thread or several are sequentially consistent: fences have nothing to add.
inline void __threadfence() {}
inline void __threadfence_block() {}
