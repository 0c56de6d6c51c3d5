#include "cpu/scratch.h"

#include <cstdio>
#include <cstdlib>

namespace afnext::cpu {
namespace {

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  ~Block() { std::free(data); }
};

}  // namespace

void* scratch(int slot, size_t bytes) {
  static thread_local Block blocks[kScratchSlots];
  Block& block = blocks[slot];
  if (block.bytes < bytes) {
    std::free(block.data);
    block.bytes = (bytes + 4095) & ~size_t{4095};
    block.data = std::aligned_alloc(64, block.bytes);
    if (block.data == nullptr) {
      std::fprintf(stderr, "afnext: out of memory for %zu bytes of scratch\n", block.bytes);
      std::abort();
    }
  }
  return block.data;
}

}  // namespace afnext::cpu
