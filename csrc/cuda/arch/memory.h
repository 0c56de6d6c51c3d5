// Words in global memory by which blocks tell each other what they have written, sums that they add
// to, and words for the host.
#pragma once

#include "cuda/arch/platform.h"
#if !defined(__CUDACC__)
#include <thread>
#endif

namespace afnext::cuda::arch {

// Writes a word of the host's memory that no kernel reads: also before griddepcontrol_wait.
#if !defined(__CUDACC__)
__attribute__((no_sanitize("thread")))  // whose hooks would take it for a write that has to wait
#endif
AFNEXT_DEVICE void tell_host(int32_t* word, int32_t value) {
  *static_cast<volatile int32_t*>(word) = value;
}

#if defined(__CUDACC__)

// Adds once what this thread wrote, or its block before a barrier, can be read by who acquires it.
AFNEXT_DEVICE void add_release(uint32_t* word, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
// The same; returns what was there, and what its releasers wrote before is read after it.
AFNEXT_DEVICE uint32_t fetch_add_acquire_release(uint32_t* word, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(word), "r"(value)
               : "memory");
  return before;
}
// The word alone. A release or acquire that this thread makes later acquires it too.
AFNEXT_DEVICE uint32_t load_relaxed(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
// The word; what its releaser wrote before is read after it.
AFNEXT_DEVICE uint32_t load_acquire(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// Adds to four floats, 16-byte aligned, in the L2 (sm_90): each by itself, in the order of arrival.
AFNEXT_DEVICE void add_to(float4* sums, const float4& more) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums), "f"(more.x),
               "f"(more.y), "f"(more.z), "f"(more.w)
               : "memory");
}

#else

inline void add_release(uint32_t* word, uint32_t value) { atomicAdd(word, value); }
inline uint32_t fetch_add_acquire_release(uint32_t* word, uint32_t value) {
  return atomicAdd(word, value);
}
inline uint32_t load_relaxed(const uint32_t* word) {
  return atomicAdd(const_cast<uint32_t*>(word), 0u);
}
inline uint32_t load_acquire(const uint32_t* word) {
  std::this_thread::yield();  // to the block that will release it
  return atomicAdd(const_cast<uint32_t*>(word), 0u);
}
inline void add_to(float4* sums, const float4& more) {
  *sums = {sums->x + more.x, sums->y + more.y, sums->z + more.z, sums->w + more.w};
}

#endif

}  // namespace afnext::cuda::arch
