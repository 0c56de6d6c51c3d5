// c = a @ b^T with cp.async in two stages, ldmatrix and mma.sync: one warp a 16 x 32 tile of c.
#pragma once

#include "emulation/kernel.h"

enum class MmaFault {
  none,
  no_wait,
  no_barrier_after_wait,
  no_barrier_at_end,
  unaligned,
  no_swizzle,
  reads_past_a,
};

struct MmaShared {
  static constexpr int kRows = 64, kColumns = 32, kStep = 64;  // of c, of c, of k
  alignas(16) uint16_t a[2][kRows][kStep];
  alignas(16) uint16_t b[2][kColumns][kStep];
};

// 16-byte units of a row change places by the row, so that the eight rows of an 8 x 8 matrix lie in
// eight different banks.
template <MmaFault fault>
int swizzled_unit(int row, int unit) {
  return (fault == MmaFault::no_swizzle ? unit : unit ^ (row & 7)) * 8;
}

template <MmaFault fault>
__global__ void mma_product(const uint16_t* a, const uint16_t* b, float* c, int m, int n, int k) {
  using Shared = MmaShared;
  auto& shared = emulation::shared_memory<Shared>();
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const int row0 = static_cast<int>(blockIdx.y) * Shared::kRows;
  const int column0 = static_cast<int>(blockIdx.x) * Shared::kColumns;
  const auto fetch = [&](uint16_t (*to)[Shared::kStep], const uint16_t* from, int rows, int first,
                         int total, int k0) {
    for (int i = t; i < rows * 8; i += 128) {
      const int row = i / 8, unit = i % 8;
      const bool inside = first + row < total || fault == MmaFault::reads_past_a;
      const uint16_t* source =
          from + static_cast<size_t>(inside ? first + row : 0) * k + k0 + unit * 8;
      const int shift = fault == MmaFault::unaligned && i == 7 ? 1 : 0;
      emulation::cp_async<16>(&to[row][swizzled_unit<fault>(row, unit)] + shift, source,
                              inside ? 16 : 0);
    }
  };
  const auto fetch_step = [&](int step) {
    fetch(shared.a[step % 2], a, Shared::kRows, row0, m, step * Shared::kStep);
    fetch(shared.b[step % 2], b, Shared::kColumns, column0, n, step * Shared::kStep);
    emulation::cp_async_commit_group();
  };
  const int steps = k / Shared::kStep;
  fetch_step(0);
  float sums[4][4] = {};
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      fetch_step(step + 1);
      if (fault != MmaFault::no_wait) emulation::cp_async_wait_group<1>();
    } else {
      emulation::cp_async_wait_group<0>();
    }
    if (fault != MmaFault::no_barrier_after_wait) __syncthreads();
    const auto& tile_a = shared.a[step % 2];
    const auto& tile_b = shared.b[step % 2];
    for (int i = 0; i < Shared::kStep / 16; ++i) {
      uint32_t fragment_a[4];
      const int row = warp * 16 + lane % 16;
      emulation::ldmatrix(fragment_a, &tile_a[row][swizzled_unit<fault>(row, 2 * i + lane / 16)]);
      for (int j = 0; j < Shared::kColumns / 8; j += 2) {
        uint32_t fragments_b[4];
        const int column = j * 8 + lane % 8 + lane / 16 * 8;
        emulation::ldmatrix(fragments_b,
                            &tile_b[column][swizzled_unit<fault>(column, 2 * i + lane / 8 % 2)]);
        const uint32_t first[2] = {fragments_b[0], fragments_b[1]};
        const uint32_t second[2] = {fragments_b[2], fragments_b[3]};
        emulation::mma_sync(emulation::Element::bf16, sums[j], fragment_a, first);
        emulation::mma_sync(emulation::Element::bf16, sums[j + 1], fragment_a, second);
      }
    }
    if (fault != MmaFault::no_barrier_at_end) __syncthreads();
  }
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + warp * 16 + lane / 4 + i / 2 * 8;
      const int column = column0 + j * 8 + lane % 4 * 2 + i % 2;
      if (row < m && column < n) c[static_cast<size_t>(row) * n + column] = sums[j][i];
    }
  }
}
