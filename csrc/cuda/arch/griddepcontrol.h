// Programmatic dependent launch (sm_90): a kernel that Call::launch_early launched starts while the
// kernels before it in the stream still run. Its blocks set up, and read what no kernel writes
// (weights), before
//
//   arch::griddepcontrol_wait();
//
// which returns once every kernel before has ended and can be seen. All reads of what other kernels
// write, and all writes (others may still read there) but tell_host's, come after. Every block
// waits, even one that has nothing to read: the next kernel takes its end for the end of all
// before.
//
// Launched by Call::launch the wait returns at once, but launch_dependents still lets the next
// kernel start early where that one may; before sm_90 both do nothing. The emulator finds blocks
// that never wait, writes before the wait, and reads of what kernels wrote before it.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda::arch {

AFNEXT_DEVICE void griddepcontrol_wait() {
#if !defined(__CUDACC__)
  emulation::griddepcontrol_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start, if it was launched early, once all blocks of this one
// have said so or ended: where registers and shared memory are left beside them. Says nothing about
// memory. Kernels of few blocks say so first; those whose successors would crowd onto the few
// multiprocessors that are free, as paged attention's, after their own wait.
AFNEXT_DEVICE void griddepcontrol_launch_dependents() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace afnext::cuda::arch
