// Copies: cp.async from global to shared memory, and wide plain loads.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda::arch {

#if defined(__CUDACC__)

// Copies `source_bytes` of `bytes` (4, 8 or 16, aligned so) and fills the rest with zeros; 16 pass
// by the L1.
template <int bytes>
AFNEXT_DEVICE void cp_async(SharedAddress shared, const void* global, int source_bytes = bytes) {
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared.bytes), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared.bytes), "l"(global),
                 "n"(bytes), "r"(source_bytes)
                 : "memory");
  }
}
template <int bytes>
AFNEXT_DEVICE void cp_async(void* shared, const void* global, int source_bytes = bytes) {
  cp_async<bytes>(SharedAddress(shared), global, source_bytes);
}
AFNEXT_DEVICE void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's latest groups are in flight.
template <int pending>
AFNEXT_DEVICE void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
// 16 bytes that will not be read again: they need no place in the L1.
AFNEXT_DEVICE uint4 load_streaming(const void* global) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(global));
  return value;
}

#else

using emulation::cp_async;
template <int bytes>
void cp_async(SharedAddress shared, const void* global, int source_bytes = bytes,
              emulation::Here here = emulation::Here::current()) {
  emulation::cp_async<bytes>(shared.pointer(), global, source_bytes, here);
}
using emulation::cp_async_commit_group;
using emulation::cp_async_wait_group;
inline uint4 load_streaming(const void* global) { return *static_cast<const uint4*>(global); }

#endif

}  // namespace afnext::cuda::arch
