// How work is cut.
#pragma once

#include <cstdint>

namespace afnext::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Blocks of at most `most` tiles; as many for each thread where they stay half as large.
constexpr int64_t even_blocks(int64_t tiles, int64_t most, int64_t threads) {
  const int64_t blocks = ceil_div(tiles, most), even = ceil_div(blocks, threads) * threads;
  return 2 * tiles >= even * most ? even : blocks;
}

}  // namespace afnext::cpu
