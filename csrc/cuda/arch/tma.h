// The copy engine (sm_90): boxes of tensors, and plain lines of bytes, between global and shared
// memory. One thread asks; loads complete on an mbarrier, stores in groups of their thread.
//
// A kernel takes a TensorMap as `const __grid_constant__ arch::TensorMap map`.
#pragma once

#include <string>

#include "cuda/arch/call.h"
#include "cuda/arch/platform.h"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace afnext::cuda::arch {

#if defined(__CUDACC__)

using TensorMap = CUtensorMap;

// How rows of a box lie in shared memory: 16-byte units of a row of 32, 64 or 128 bytes change
// places by the row's number, so that eight rows of the same columns lie in different banks.
enum class Swizzle : uint8_t { none, bytes32, bytes64, bytes128 };

// Where byte `address` of a swizzled tile lies; tiles begin at multiples of 1,024.
__host__ __device__ constexpr uint32_t swizzled(Swizzle swizzle, uint32_t address) {
  const uint32_t mask = (1u << static_cast<int>(swizzle)) - 1;
  return address ^ (address >> 7 & mask) << 4;
}

// A tensor of 1 to 5 dimensions, innermost first: their sizes, the strides in bytes of all but the
// first (multiples of 16), and the box of elements that one copy moves. What lies outside the
// tensor reads as zeros and is not written.
inline TensorMap make_tensor_map(const void* base, DType dtype, int rank, const uint64_t* sizes,
                                 const uint64_t* strides, const uint32_t* box, Swizzle swizzle) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  constexpr unsigned kSince = 12000;  // CUDA 12.0
  static const auto encode = [] {     // the driver's own, so that nothing links to it
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               kSince, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      throw CudaError("CUDA: the driver has no cuTensorMapEncodeTiled, it must be of 12.0");
    }
    return reinterpret_cast<Encode>(function);
  }();
  const auto element = [&] {
    switch (dtype) {
      case DType::bf16:
        return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
      case DType::f16:
        return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
      case DType::f32:
        return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
      case DType::i32:
        return CU_TENSOR_MAP_DATA_TYPE_INT32;
      case DType::i8:
      case DType::u8:
        return CU_TENSOR_MAP_DATA_TYPE_UINT8;
      default:
        throw CudaError("CUDA: a tensor map of a dtype that the copy engine does not know");
    }
  }();
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B,
                                              CU_TENSOR_MAP_SWIZZLE_128B};
  constexpr uint32_t kEveryElement[] = {1, 1, 1, 1, 1};
  TensorMap map;
  const CUresult result = encode(
      &map, element, static_cast<uint32_t>(rank), const_cast<void*>(base), sizes, strides, box,
      kEveryElement, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(swizzle)],
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::string text = "CUDA: no tensor map (driver error " + std::to_string(result) + ") of sizes";
    for (int i = 0; i < rank; ++i) text += " " + std::to_string(sizes[i]);
    text += ", strides";
    for (int i = 0; i + 1 < rank; ++i) text += " " + std::to_string(strides[i]);
    text += ", box";
    for (int i = 0; i < rank; ++i) text += " " + std::to_string(box[i]);
    throw CudaError(text);
  }
  return map;
}

// Fetches the map itself, which the first copy would wait for.
AFNEXT_DEVICE void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box whose first element is `corner`, innermost first; bytes outside the tensor count too.
template <int rank>
AFNEXT_DEVICE void cp_async_bulk_tensor_load(const TensorMap& map, const int (&corner)[rank],
                                             void* shared, uint64_t* barrier) {
  static_assert(rank >= 2 && rank <= 5);
  const uint32_t to = shared_address(shared), done = shared_address(barrier);
  if constexpr (rank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"(&map), "r"(done), "r"(corner[0]), "r"(corner[1])
        : "memory");
  } else if constexpr (rank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(&map), "r"(done), "r"(corner[0]), "r"(corner[1]), "r"(corner[2])
        : "memory");
  } else if constexpr (rank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
        "l"(&map), "r"(done), "r"(corner[0]), "r"(corner[1]), "r"(corner[2]), "r"(corner[3])
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
        "l"(&map), "r"(done), "r"(corner[0]), "r"(corner[1]), "r"(corner[2]), "r"(corner[3]),
        "r"(corner[4])
        : "memory");
  }
}
// The other way; what threads wrote must have gone through fence_proxy_async and a barrier.
template <int rank>
AFNEXT_DEVICE void cp_async_bulk_tensor_store(const TensorMap& map, const int (&corner)[rank],
                                              const void* shared) {
  static_assert(rank >= 2 && rank <= 5);
  const uint32_t from = shared_address(shared);
  if constexpr (rank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(from), "r"(corner[0]), "r"(corner[1])
        : "memory");
  } else if constexpr (rank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            &map),
        "r"(from), "r"(corner[0]), "r"(corner[1]), "r"(corner[2])
        : "memory");
  } else if constexpr (rank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(from), "r"(corner[0]), "r"(corner[1]), "r"(corner[2]), "r"(corner[3])
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group "
        "[%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
        "r"(from), "r"(corner[0]), "r"(corner[1]), "r"(corner[2]), "r"(corner[3]), "r"(corner[4])
        : "memory");
  }
}

// `bytes` in a line: a multiple of 16, from and to multiples of 16.
AFNEXT_DEVICE void cp_async_bulk_load(void* shared, const void* global, uint32_t bytes,
                                      uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
AFNEXT_DEVICE void cp_async_bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}
// Adds float32 to global memory, each by itself.
AFNEXT_DEVICE void cp_reduce_async_bulk_add(void* global, const void* shared, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
      "r"(shared_address(shared)), "r"(bytes)
      : "memory");
}
AFNEXT_DEVICE void cp_async_bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until at most `pending` of this thread's latest groups of stores are under way.
template <int pending>
AFNEXT_DEVICE void cp_async_bulk_wait_group() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}
// Until they have read shared memory, which may then be written or given up.
template <int pending>
AFNEXT_DEVICE void cp_async_bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

#else

using emulation::cp_async_bulk_commit_group;
using emulation::cp_async_bulk_load;
using emulation::cp_async_bulk_store;
using emulation::cp_async_bulk_wait_group;
using emulation::cp_async_bulk_wait_group_read;
using emulation::cp_reduce_async_bulk_add;
using emulation::Swizzle;
using emulation::swizzled;
using emulation::TensorMap;

inline TensorMap make_tensor_map(const void* base, DType dtype, int rank, const uint64_t* sizes,
                                 const uint64_t* strides, const uint32_t* box, Swizzle swizzle) {
  return emulation::make_tensor_map(const_cast<void*>(base), dtype_size(dtype), rank, sizes,
                                    strides, box, swizzle);
}
inline void prefetch_tensor_map(const TensorMap&) {}

template <int rank>
emulation::TensorCopies::Corner corner_of(const int (&corner)[rank]) {
  static_assert(rank >= 2 && rank <= 5);
  emulation::TensorCopies::Corner all{};
  for (int i = 0; i < rank; ++i) all[static_cast<size_t>(i)] = corner[i];
  return all;
}
template <int rank>
void cp_async_bulk_tensor_load(const TensorMap& map, const int (&corner)[rank], void* shared,
                               uint64_t* barrier,
                               emulation::Here here = emulation::Here::current()) {
  emulation::cp_async_bulk_tensor_load(map, corner_of(corner), shared, barrier, here);
}
template <int rank>
void cp_async_bulk_tensor_store(const TensorMap& map, const int (&corner)[rank], const void* shared,
                                emulation::Here here = emulation::Here::current()) {
  emulation::cp_async_bulk_tensor_store(map, corner_of(corner), shared, here);
}

#endif

}  // namespace afnext::cuda::arch
