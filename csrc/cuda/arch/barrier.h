// Barriers of some of a block's warps, and what else warpgroups with different roles need.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda::arch {

#if defined(__CUDACC__)

// Whether this is a compilation for sm_90a, whose instructions (wgmma, setmaxnreg) no other
// architecture assembles: a kernel's body asks once.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kSm90a = true;
#else
constexpr bool kSm90a = false;
#endif
AFNEXT_DEVICE void trap() { asm volatile("trap;"); }

// Named barrier `id` (1 to 15; 0 is __syncthreads') of `threads`, a multiple of 32: those who sync
// wait for all, those who arrive go on at once.
AFNEXT_DEVICE void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
AFNEXT_DEVICE void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Hands what this thread wrote to shared memory to instructions of the asynchronous proxy: TMA and
// wgmma. A barrier or mbarrier then tells them.
AFNEXT_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Registers a thread of this warpgroup, a multiple of 8 from 24 to 256: all its warps ask. Who
// takes more waits until others have given some back.
template <int registers>
AFNEXT_DEVICE void take_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
AFNEXT_DEVICE void give_back_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

#else

constexpr bool kSm90a = true;
inline void trap() {}

using emulation::bar_arrive;
using emulation::bar_sync;
using emulation::fence_proxy_async;
template <int>
void take_registers() {}
template <int>
void give_back_registers() {}

#endif

}  // namespace afnext::cuda::arch
