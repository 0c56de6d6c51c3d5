// A stack of its own that runs a function until something else is switched to: a CUDA thread.
//
// A switch saves the registers that a call keeps, in a dozen instructions on x86-64 and aarch64
// (tens of millions a second); ucontext serves other machines at a tenth of that.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_UCONTEXT  // tests define it, too
#endif
#if defined(EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 << 10;

  // The stack that the caller stands on: something to switch back to.
  Fiber() = default;
  // A stack for `entry`, which must never return; memory is taken as it is touched, and running
  // past its end faults.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  bool holds(const void* pointer) const {
    return static_cast<size_t>(static_cast<const char*>(pointer) - memory_) < kStackBytes;
  }

  // The next switch here enters `entry` from its start.
  void restart();

  // Leaves `from`, which must be what runs now, and goes on where `to` was left.
  static void switch_between(Fiber& from, Fiber& to);

 private:
  void (*entry_)() = nullptr;
  char* memory_ = nullptr;
#if defined(EMULATION_UCONTEXT)
  ucontext_t context_;
#else
  void* top_ = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  static void arrived();
#endif
  static void enter();
  void forget_frames();
};

}  // namespace emulation
