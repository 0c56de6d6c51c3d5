#include "emulation/shared_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <string>

namespace emulation {

SharedMemory::SharedMemory() {
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<char*>(memory);
}

SharedMemory::~SharedMemory() { munmap(data_, kBytes); }

void SharedMemory::start_block(size_t bytes, bool poison) {
  if (bytes > kBytes - 1024) {  // a block leaves 1 KB to the system
    throw Error("a block has at most 227 KB of shared memory, not " + std::to_string(bytes) +
                " bytes");
  }
  used_ = bytes;
  if (poison) std::memset(data_, 0xff, bytes);
}

void SharedMemory::check(uint32_t address, size_t bytes, const char* what,
                         const Where& where) const {
  if (!inside(address, bytes)) {
    fail(where, std::string(what) + " of " + std::to_string(bytes) + " bytes at " +
                    std::to_string(address) + " leaves the block's " + std::to_string(used_) +
                    " bytes of shared memory");
  }
}

uint32_t SharedMemory::check(const void* pointer, size_t bytes, size_t alignment, const char* what,
                             const Where& where) const {
  if (!holds(pointer)) fail(where, std::string(what) + " wants an address in shared memory");
  const uint32_t address = this->address(pointer);
  if (address % alignment != 0) {
    fail(where, std::string(what) + " at shared byte " + std::to_string(address) +
                    " wants a multiple of " + std::to_string(alignment));
  }
  check(address, bytes, what, where);
  return address;
}

}  // namespace emulation
