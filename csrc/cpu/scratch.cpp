#include "cpu/scratch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace afnext::cpu {
namespace {

// Under AddressSanitizer each request gets memory of its own, exactly as long as it asks and full
// of NaN: what a kernel reads without having written it, or beyond the end, then shows.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExact = true;
#else
constexpr bool kExact = false;
#endif

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  ~Block() { std::free(data); }
};

}  // namespace

void* scratch(int slot, size_t bytes) {
  static thread_local Block blocks[kScratchSlots];
  Block& block = blocks[slot];
  if (kExact || block.bytes < bytes) {
    std::free(block.data);
    block.bytes = kExact ? bytes : (bytes + 4095) & ~size_t{4095};
    if (posix_memalign(&block.data, 64, block.bytes) != 0) {
      std::fprintf(stderr, "afnext: out of memory for %zu bytes of scratch\n", block.bytes);
      std::abort();
    }
    if (kExact) std::memset(block.data, 0xff, bytes);
  }
  return block.data;
}

}  // namespace afnext::cpu
