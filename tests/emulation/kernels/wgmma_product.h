// c = a @ b^T for Hopper: a warp that fetches by TMA, two warpgroups that multiply by wgmma,
// mbarriers between them, and c back through shared memory by TMA.
#pragma once

#include "emulation/kernel.h"

enum class WgmmaFault {
  none,
  no_wait_for_empty,
  no_wait_for_full,
  released_too_soon,
  no_wgmma_fence,
  no_wgmma_wait,
  no_proxy_fence,
  no_store_wait,
  few_bytes_expected,
  many_arrivals,
  not_initialised,
  registers_reused,
};

// How b lies in memory: [n, k], or [k, n] and then read "MN-major".
enum class Major { k, n };

struct WgmmaShared {
  static constexpr int kStages = 3, kRows = 128, kColumns = 64, kStep = 64;
  static constexpr uint32_t kStageBytes = (kRows + kColumns) * kStep * 2;
  alignas(1024) uint16_t a[kStages][kRows * kStep];
  alignas(1024) uint16_t b[kStages][kColumns * kStep];
  alignas(1024) float c[kRows * kColumns];
  uint64_t full[kStages], empty[kStages];
};

// Rows of 128 bytes, swizzled, eight of them 1,024 bytes.
inline uint64_t descriptor(const void* tile) {
  const uint64_t address = emulation::shared_address(tile) >> 4 & 0x3fff;
  return address | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

template <WgmmaFault fault, Major major, bool a_in_registers>
__global__ void wgmma_product(const __grid_constant__ emulation::TensorMap map_a,
                              const __grid_constant__ emulation::TensorMap map_b,
                              const __grid_constant__ emulation::TensorMap map_c, int k) {
  using namespace emulation;
  using Shared = WgmmaShared;
  auto& shared = shared_memory<Shared>();
  const int group = static_cast<int>(threadIdx.x) / 128, t = static_cast<int>(threadIdx.x) % 128;
  const int row0 = static_cast<int>(blockIdx.y) * Shared::kRows;
  const int column0 = static_cast<int>(blockIdx.x) * Shared::kColumns;
  const int steps = k / Shared::kStep;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      if (fault != WgmmaFault::not_initialised || i != 1) mbarrier_init(&shared.full[i], 1);
      mbarrier_init(&shared.empty[i], 2);
    }
  }
  __syncthreads();
  if (group == 0) {
    if (t != 0) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % Shared::kStages, parity = step / Shared::kStages % 2;
      if (fault != WgmmaFault::no_wait_for_empty) mbarrier_wait(&shared.empty[stage], parity ^ 1);
      const uint32_t bytes =
          fault == WgmmaFault::few_bytes_expected ? Shared::kStageBytes - 16 : Shared::kStageBytes;
      mbarrier_arrive_expect_tx(&shared.full[stage], bytes);
      const int k0 = step * Shared::kStep;
      cp_async_bulk_tensor_load(map_a, {k0, row0}, shared.a[stage], &shared.full[stage]);
      if (major == Major::k) {
        cp_async_bulk_tensor_load(map_b, {k0, column0}, shared.b[stage], &shared.full[stage]);
      } else {
        cp_async_bulk_tensor_load(map_b, {column0, k0}, shared.b[stage], &shared.full[stage]);
      }
    }
    return;
  }
  const int warp = t / 32, lane = t % 32, first_row = (group - 1) * 64;
  float sums[32];
  for (int step = 0; step < steps; ++step) {
    const int stage = step % Shared::kStages, parity = step / Shared::kStages % 2;
    if (fault != WgmmaFault::no_wait_for_full) mbarrier_wait(&shared.full[stage], parity);
    const uint16_t* a = shared.a[stage] + first_row * Shared::kStep;
    const uint16_t* b = shared.b[stage];
    uint32_t registers[4][4];
    if (a_in_registers) {
      for (int i = 0; i < 4; ++i) {
        const int row = warp * 16 + lane % 16, unit = 2 * i + lane / 16;
        ldmatrix(registers[i], a + row * Shared::kStep + (unit ^ (row & 7)) * 8);
      }
    }
    if (fault != WgmmaFault::no_wgmma_fence) wgmma_fence();
    for (int i = 0; i < 4; ++i) {
      // 16 of k are 32 bytes of a row, or 16 rows of 128 bytes.
      const uint64_t b_descriptor =
          descriptor(b) + static_cast<uint64_t>(major == Major::k ? 2 * i : i * 16 * 128 / 16);
      wgmma_mma_async({sums, 64, a_in_registers ? registers[i] : nullptr,
                       descriptor(a) + static_cast<uint64_t>(2 * i), b_descriptor, step + i > 0,
                       false, major == Major::n, Element::bf16});
    }
    wgmma_commit_group();
    if (fault == WgmmaFault::registers_reused && lane == 5) registers[2][1] = 0;
    if (fault == WgmmaFault::released_too_soon) {
      wgmma_wait_group<1>();
    } else if (fault != WgmmaFault::no_wgmma_wait) {
      wgmma_wait_group<0>();
    }
    bar_sync(group, 128);
    if (t == 0 || fault == WgmmaFault::many_arrivals) mbarrier_arrive(&shared.empty[stage]);
  }
  if (fault == WgmmaFault::released_too_soon) wgmma_wait_group<0>();
  // c leaves as rows of 32 floats, 128 bytes: two boxes a row.
  for (int i = 0; i < 32; ++i) {
    const int row = first_row + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2, box = column / 32;
    shared.c[box * Shared::kRows * 32 + row * 32 + column % 32] = sums[i];
  }
  if (fault != WgmmaFault::no_proxy_fence) fence_proxy_async();
  bar_sync(3, 256);
  if (group == 1 && t == 0) {
    for (int box = 0; box < 2; ++box) {
      cp_async_bulk_tensor_store(map_c, {column0 + box * 32, row0},
                                 shared.c + box * Shared::kRows * 32);
    }
    cp_async_bulk_commit_group();
    if (fault != WgmmaFault::no_store_wait) cp_async_bulk_wait_group<0>();
  }
}
