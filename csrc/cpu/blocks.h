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

// So many blocks of columns, of about `wide` panels, that all blocks are shared evenly:
// parallel_for hands out a quarter of a thread's share.
constexpr int64_t column_blocks(int64_t row_blocks, int64_t panels, int64_t wide, int64_t threads) {
  if (panels == 0) return 0;
  const int64_t share = 4 * threads, blocks = row_blocks * ceil_div(panels, wide);
  return smaller(ceil_div(ceil_div(blocks, share) * share, row_blocks), panels);
}

}  // namespace afnext::cpu
