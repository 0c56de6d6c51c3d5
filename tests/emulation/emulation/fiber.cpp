#include "emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

#if defined(EMULATION_UCONTEXT)

#elif defined(__x86_64__)

// Six registers and the address to return to lie on a stack that is not running.
constexpr int kSaved = 6, kReturn = 6;

extern "C" void emulation_switch(void** from, void* to);
__asm__(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

#elif defined(__aarch64__)

// x19 to x28, x29 and x30 (the address to return to), d8 to d15.
constexpr int kSaved = 20, kReturn = 11;

extern "C" void emulation_switch(void** from, void* to);
__asm__(R"(
.text
.globl emulation_switch
.type emulation_switch, %function
emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulation_switch, .-emulation_switch
)");

#endif

// Whom a switch left: address sanitizer wants to know whose stack that was.
thread_local Fiber* left = nullptr;
thread_local void (*starting)() = nullptr;

}  // namespace

Fiber::Fiber(void (*entry)()) : entry_(entry) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
  restart();
}

Fiber::~Fiber() {
  if (memory_ == nullptr) return;
  forget_frames();
  munmap(memory_, kStackBytes);
}

// Frames that were left and not returned from are marked as AddressSanitizer's own.
void Fiber::forget_frames() {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory_, kStackBytes);
#endif
}

void Fiber::enter() {
#if defined(__SANITIZE_ADDRESS__)
  arrived();
#endif
  starting();
  __builtin_unreachable();
}

#if defined(__SANITIZE_ADDRESS__)
void Fiber::arrived() { __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->bytes_); }
#endif

#if defined(EMULATION_UCONTEXT)

void Fiber::restart() {
  forget_frames();
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::enter, 0);
}

void Fiber::switch_between(Fiber& from, Fiber& to) {
  left = &from, starting = to.entry_;
  swapcontext(&from.context_, &to.context_);
}

#else

void Fiber::restart() {
  forget_frames();
#if defined(__SANITIZE_ADDRESS__)
  bottom_ = memory_, bytes_ = kStackBytes;
  ASAN_UNPOISON_MEMORY_REGION(memory_,
                              kStackBytes);  // of frames that were left and not returned from
#endif
  // As a call would have left it: on x86-64 the stack is 8 off a multiple of 16 at a function's
  // start.
  auto* top = reinterpret_cast<uintptr_t*>(memory_ + kStackBytes - 64);
  for (int i = 0; i < kSaved + 2; ++i) *--top = 0;
#if defined(__aarch64__)
  top += 2;
#endif
  top[kReturn] = reinterpret_cast<uintptr_t>(&Fiber::enter);
  top_ = top;
}

void Fiber::switch_between(Fiber& from, Fiber& to) {
  left = &from, starting = to.entry_;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to.bottom_, to.bytes_);
  emulation_switch(&from.top_, to.top_);
  __sanitizer_finish_switch_fiber(fake, &left->bottom_, &left->bytes_);
#else
  emulation_switch(&from.top_, to.top_);
#endif
}

#endif

}  // namespace emulation
