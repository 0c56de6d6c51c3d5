// Who compiles: nvcc for a GPU, or a plain C++ compiler for the emulator of tests/emulation. What
// differs between the two lies in this folder.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define AFNEXT_DEVICE __device__ __forceinline__
#else
#include "emulation/kernel.h"
#define AFNEXT_DEVICE inline
#endif

namespace afnext::cuda::arch {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffff;

#if defined(__CUDACC__)

// The block's dynamic shared memory, 1,024-byte aligned: a Layout gives its parts names.
template <typename Layout>
AFNEXT_DEVICE Layout& shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return *reinterpret_cast<Layout*>(memory);
}
// A generic address in the 32-bit window of shared memory.
AFNEXT_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Where something lies in shared memory, as instructions take it: in one register.
struct SharedAddress {
  uint32_t bytes;

  AFNEXT_DEVICE explicit SharedAddress(const void* p) : bytes(shared_address(p)) {}
  AFNEXT_DEVICE SharedAddress operator+(uint32_t more) const { return {bytes + more}; }
  AFNEXT_DEVICE SharedAddress operator^(uint32_t bits) const { return {bytes ^ bits}; }

 private:
  AFNEXT_DEVICE SharedAddress(uint32_t at) : bytes(at) {}
};

// x, of which the compiler knows nothing any more: what follows from it is computed here, not ahead
// of a loop, where it would take registers.
AFNEXT_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
// Of a kernel's parameter: read as global memory, for the constant cache serves a warp's lanes one
// address at a time.
template <typename T>
AFNEXT_DEVICE const T* opaque(const T* x) {
  asm volatile("" : "+l"(x));
  return x;
}
// An address that stays where it is, rather than being made again wherever it is needed.
AFNEXT_DEVICE SharedAddress opaque(SharedAddress at) {
  asm volatile("" : "+r"(at.bytes));
  return at;
}

#else

struct SharedAddress {
  uintptr_t bytes;

  explicit SharedAddress(const void* p) : bytes(reinterpret_cast<uintptr_t>(p)) {}
  SharedAddress operator+(uint32_t more) const { return SharedAddress(pointer(bytes + more)); }
  SharedAddress operator^(uint32_t bits) const { return SharedAddress(pointer(bytes ^ bits)); }
  void* pointer() const { return pointer(bytes); }

 private:
  static void* pointer(uintptr_t at) { return reinterpret_cast<void*>(at); }
};

inline int opaque(int x) { return x; }
template <typename T>
const T* opaque(const T* x) {
  return x;
}
inline SharedAddress opaque(SharedAddress at) { return at; }
using emulation::shared_address;
using emulation::shared_memory;

#endif

}  // namespace afnext::cuda::arch
