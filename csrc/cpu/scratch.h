// Working memory of kernels: kept a thread, grown when needed, aligned to 64 bytes.
#pragma once

#include <cstddef>

namespace afnext::cpu {

constexpr int kScratchSlots = 8;

// At least `bytes` of this thread's memory for `slot`; its content is whatever the last user left.
// A kernel's own slots must differ; a nested call of another kernel may overwrite them. Terminates
// the process when memory is out.
void* scratch(int slot, size_t bytes);

template <typename T>
T* scratch(int slot, size_t count) {
  return static_cast<T*>(scratch(slot, count * sizeof(T)));
}

}  // namespace afnext::cpu
