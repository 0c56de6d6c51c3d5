// mbarriers: 64-bit objects in shared memory whose phases end when every expected arrival and byte
// has come. A waiter names the parity of the phase whose end it waits for: 0 for the first, then 1,
// 0, ... and at once through with the parity of "the one before the first", 1.
//
// Transaction counts and try_wait need sm_90.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda::arch {

#if defined(__CUDACC__)

// By one thread, before a fence and a barrier of the block.
AFNEXT_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Makes initialisations visible to the copy engine.
AFNEXT_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// The memory may then serve as something else.
AFNEXT_DEVICE void mbarrier_inval(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
AFNEXT_DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.shared::cta.b64 state, [%0];\n"
      "}" ::"r"(shared_address(barrier))
      : "memory");
}
// An arrival that makes the phase wait for `bytes` more, which copies will bring.
AFNEXT_DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
AFNEXT_DEVICE bool mbarrier_test_wait(const uint64_t* barrier, int parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
// try_wait lets the thread sleep for a while that the hardware chooses, so it is asked again.
AFNEXT_DEVICE void mbarrier_wait(const uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

#else

using emulation::mbarrier_arrive;
using emulation::mbarrier_arrive_expect_tx;
using emulation::mbarrier_init;
using emulation::mbarrier_inval;
using emulation::mbarrier_test_wait;
using emulation::mbarrier_wait;
inline void fence_mbarrier_init() {}

#endif

}  // namespace afnext::cuda::arch
