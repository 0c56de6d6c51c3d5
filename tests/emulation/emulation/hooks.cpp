// The runtime behind -fsanitize=thread: kernels are compiled with it and linked without it, so that
// every plain load and store of theirs comes here.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "emulation/block.h"
#include "emulation/symbols.h"

namespace {

using emulation::Block;

inline void access(void* pointer, size_t bytes, bool writes, const void* code) {
  if (!Block::in_kernel()) return;
  Block& block = Block::current();
  if (!block.shared.holds(pointer)) {
    const emulation::Accessor who{0, 0, {}, code};
    return writes ? block.write_global(pointer, bytes, who)
                  : block.read_global(pointer, bytes, who);
  }
  ++block.counters.shared_accesses;
  const emulation::Thread& thread = block.thread();
  const uint32_t address = block.shared.address(pointer);
  // The compiler takes it for granted that these functions do not throw.
  if (!block.shared.inside(address, bytes)) {
    return block.fail_later(emulation::Error(
        emulation::symbol_of(code) + ": " + (writes ? "a store" : "a load") + " at shared byte " +
        std::to_string(address) + ", beyond what the launch asked for"));
  }
  if (!block.options.detect_races) return;
  const emulation::Accessor who{thread.warp, thread.lane, {}, code};
  writes ? block.races.write(address, bytes, who) : block.races.read(address, bytes, who);
}

}  // namespace

#define HOOKS(bytes)                                                                         \
  void __tsan_read##bytes(void* p) { access(p, bytes, false, __builtin_return_address(0)); } \
  void __tsan_write##bytes(void* p) { access(p, bytes, true, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##bytes(void* p) {                                               \
    access(p, bytes, false, __builtin_return_address(0));                                    \
  }                                                                                          \
  void __tsan_unaligned_write##bytes(void* p) {                                              \
    access(p, bytes, true, __builtin_return_address(0));                                     \
  }                                                                                          \
  void __tsan_volatile_read##bytes(void* p) {                                                \
    access(p, bytes, false, __builtin_return_address(0));                                    \
  }                                                                                          \
  void __tsan_volatile_write##bytes(void* p) {                                               \
    access(p, bytes, true, __builtin_return_address(0));                                     \
  }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  access(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  access(p, bytes, true, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  access(const_cast<void*>(from), bytes, false, __builtin_return_address(0));
  access(to, bytes, true, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  access(to, bytes, true, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
