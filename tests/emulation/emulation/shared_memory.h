// A block's shared memory: an arena with 32-bit addresses, as the hardware's window has.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulation/error.h"

namespace emulation {

class SharedMemory {
 public:
  static constexpr size_t kBytes = 228 << 10;  // of an H100's or H200's multiprocessor

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // `bytes` for the block; NaN in every format of 8, 16 and 32 bits where `poison`.
  void start_block(size_t bytes, bool poison);

  char* data() const { return data_; }
  bool holds(const void* pointer) const {
    return static_cast<size_t>(static_cast<const char*>(pointer) - data_) < kBytes;
  }
  uint32_t address(const void* pointer) const {
    return static_cast<uint32_t>(static_cast<const char*>(pointer) - data_);
  }
  bool inside(uint32_t address, size_t bytes) const { return address + bytes <= used_; }
  // The address of `bytes` at `pointer`, which must lie in what the launch asked for, aligned.
  uint32_t check(const void* pointer, size_t bytes, size_t alignment, const char* what,
                 const Where& where) const;
  void check(uint32_t address, size_t bytes, const char* what, const Where& where) const;

 private:
  char* data_ = nullptr;
  size_t used_ = 0;
};

}  // namespace emulation
