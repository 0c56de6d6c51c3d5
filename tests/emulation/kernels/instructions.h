// Single instructions beside their definitions: each kernel counts what differs.
#pragma once

#include "emulation/kernel.h"

inline void expect(bool right, int* wrong) {
  if (!right) atomicAdd(wrong, 1);
}

inline __global__ void lanes(int* wrong) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr uint32_t all = 0xffffffff;
  expect(__shfl_sync(all, lane * 3, 5) == 15, wrong);
  expect(__shfl_sync(all, lane, 33) == 1, wrong);
  expect(__shfl_sync(all, lane, 2, 8) == lane / 8 * 8 + 2, wrong);
  expect(__shfl_up_sync(all, lane, 3) == (lane < 3 ? lane : lane - 3), wrong);
  expect(__shfl_down_sync(all, lane, 3) == (lane > 28 ? lane : lane + 3), wrong);
  expect(__shfl_down_sync(all, lane, 1, 4) == (lane % 4 == 3 ? lane : lane + 1), wrong);
  expect(__shfl_xor_sync(all, lane, 9) == (lane ^ 9), wrong);
  const double wide = __shfl_xor_sync(all, lane + 0.5, 1);
  expect(wide == (lane ^ 1) + 0.5, wrong);
  expect(__ballot_sync(all, lane % 3 == 0) == 0x49249249, wrong);
  expect(__any_sync(all, lane == 7) && !__all_sync(all, lane == 7), wrong);
  expect(__reduce_add_sync(all, static_cast<unsigned>(lane)) == 496, wrong);
  expect(__reduce_max_sync(all, static_cast<unsigned>(lane ^ 21)) == 31, wrong);
  // Two halves of a warp may meet apart.
  const uint32_t half = lane < 16 ? 0x0000ffff : 0xffff0000;
  expect(__shfl_xor_sync(half, lane, 8) == (lane ^ 8), wrong);
  expect(__ballot_sync(half, true) == half, wrong);
}

struct MatrixShared {
  alignas(16) uint16_t in[4][8][8], out[4][8][8];
};

// Lane l's register holds row l / 4 and columns 2 (l % 4) and the next; transposed, the other way
// round.
inline __global__ void matrices(int* wrong) {
  auto& shared = emulation::shared_memory<MatrixShared>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) (&shared.in[0][0][0])[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t plain[4], turned[4];
  emulation::ldmatrix(plain, shared.in[lane / 8][lane % 8]);
  emulation::ldmatrix(turned, shared.in[lane / 8][lane % 8], true);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2;
    const auto value = [&](int r, int c) { return static_cast<uint32_t>(i * 64 + r * 8 + c); };
    expect(plain[i] == (value(row, column) | value(row, column + 1) << 16), wrong);
    expect(turned[i] == (value(column, row) | value(column + 1, row) << 16), wrong);
  }
  emulation::stmatrix(shared.out[lane / 8][lane % 8], turned, true);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) expect((&shared.out[0][0][0])[i] == i, wrong);
}

// Small whole numbers are exact in every format; the sums too.
inline int small(int i, int j) { return (i * 7 + j * 3) % 5 - 2; }

inline uint32_t encoded(emulation::Element element, int value) {
  using emulation::Element;
  if (element == Element::s8) return static_cast<uint8_t>(value);
  const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  const uint32_t sign = bits >> 31, exponent = bits >> 23 & 255, fraction = bits & 0x7fffff;
  if (element == Element::bf16) return bits >> 16;
  if (value == 0) return 0;
  if (element == Element::f16) return sign << 15 | (exponent - 112) << 10 | fraction >> 13;
  return sign << 7 | (exponent - 120) << 3 | fraction >> 20;
}

template <emulation::Element element>
__global__ void products(int* wrong) {
  constexpr bool integers = element == emulation::Element::s8;
  constexpr int kBytes =
      element == emulation::Element::bf16 || element == emulation::Element::f16 ? 2 : 1;
  constexpr int kPer = 4 / kBytes, kDepth = 32 / kBytes;
  using Sum = std::conditional_t<integers, int32_t, float>;
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, first = lane % 4 * kPer;
  uint32_t a[4] = {}, b[2] = {};
  Sum d[4] = {1, 2, 3, 4};
  for (int e = 0; e < kPer; ++e) {
    for (int half = 0; half < 2; ++half) {
      const int k = first + half * kDepth / 2 + e, shift = 8 * kBytes * e;
      a[2 * half] |= encoded(element, small(group, k)) << shift;
      a[2 * half + 1] |= encoded(element, small(group + 8, k)) << shift;
      b[half] |= encoded(element, small(k, group + 1)) << shift;
    }
  }
  emulation::mma_sync(element, d, a, b);
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    int sum = i + 1;
    for (int k = 0; k < kDepth; ++k) sum += small(row, k) * small(k, column + 1);
    expect(d[i] == static_cast<Sum>(sum), wrong);
  }
}

// One wgmma from tiles that threads wrote by the manual's layouts, k along the rows of memory or m
// and n.
struct TileShared {
  alignas(1024) uint16_t a[64 * 64], b[64 * 64];
};

template <emulation::Swizzle swizzle, bool by_rows>
__global__ void warpgroup_tiles(int* wrong) {
  using namespace emulation;
  auto& shared = shared_memory<TileShared>();
  constexpr int kMode = static_cast<int>(swizzle),
                kPitch = 8 << kMode;  // elements of a row of memory
  constexpr bool none = swizzle == Swizzle::none;
  // Without a swizzle, 8 x 16-byte pieces lie one after another; else whole rows of the pitch do.
  constexpr int kLeading = by_rows ? (none ? 8 * 128 : kPitch * 32) : 128;
  constexpr int kStride = none ? (by_rows ? 128 : 256) : kPitch * 16;
  const auto place = [&](int i, int k) {
    const int mask = kPitch / 8 - 1;
    if (!by_rows) {
      if (none) return i / 8 * (kStride / 2) + k / 8 * (kLeading / 2) + i % 8 * 8 + k % 8;
      const int unit = k / 8 ^ (i >> (3 - kMode) & mask);
      return i * kPitch + unit * 8 + k % 8;
    }
    if (none) return i / 8 * (kStride / 2) + k / 8 * (kLeading / 2) + k % 8 * 8 + i % 8;
    const int unit = i % kPitch / 8 ^ (k >> (3 - kMode) & mask);
    return i / kPitch * (kLeading / 2) + k / 8 * (kStride / 2) + k % 8 * kPitch + unit * 8 + i % 8;
  };
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 64 * 16; i += 128) {
    const auto value = [](int x) { return static_cast<uint16_t>(encoded(Element::bf16, x)); };
    shared.a[place(i / 16, i % 16)] = value(small(i / 16, i % 16));
    shared.b[place(i / 16, i % 16)] = value(small(i % 16, i / 16 + 1));
  }
  fence_proxy_async();
  __syncthreads();
  const auto describe = [&](const void* tile) {
    const uint64_t address = shared_address(tile) / 16, mode = none ? 0 : 4 - kMode;
    return address | uint64_t{kLeading / 16} << 16 | uint64_t{kStride / 16} << 32 | mode << 62;
  };
  float sums[32];
  for (int i = 0; i < 32; ++i) sums[i] = static_cast<float>(i);
  wgmma_fence();
  wgmma_mma_async({sums, 64, nullptr, describe(shared.a), describe(shared.b), true, by_rows,
                   by_rows, Element::bf16});
  wgmma_commit_group();
  wgmma_wait_group<0>();
  for (int i = 0; i < 32; ++i) {
    const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8,
              column = i / 4 * 8 + t % 4 * 2 + i % 2;
    int sum = i;
    for (int k = 0; k < 16; ++k) sum += small(row, k) * small(k, column + 1);
    expect(sums[i] == static_cast<float>(sum), wrong);
  }
}

// A box of a three-dimensional tensor that hangs over its edges: zeros outside, each swizzle.
struct BoxShared {
  alignas(1024) uint16_t box[2][4][64];
  alignas(16) uint16_t line[64];
  uint64_t landed;
};

template <emulation::Swizzle swizzle>
__global__ void boxes(const __grid_constant__ emulation::TensorMap map, const uint16_t* line,
                      uint16_t* line_out, int* wrong) {
  using namespace emulation;
  constexpr int kMode = static_cast<int>(swizzle),
                kPitch = swizzle == Swizzle::none ? 64 : 8 << kMode;
  auto& shared = shared_memory<BoxShared>();
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) mbarrier_init(&shared.landed, 1);
  __syncthreads();
  if (t == 0) {
    // The first phase is under way; the one before it, of the other parity, counts as complete.
    expect(!mbarrier_test_wait(&shared.landed, 0) && mbarrier_test_wait(&shared.landed, 1), wrong);
    mbarrier_arrive_expect_tx(&shared.landed, 2 * 4 * kPitch * 2 + sizeof(shared.line));
    cp_async_bulk_tensor_load(map, {-2, 3, 1}, shared.box, &shared.landed);
    cp_async_bulk_load(shared.line, line, sizeof(shared.line), &shared.landed);
  }
  mbarrier_wait(&shared.landed, 0);
  expect(mbarrier_test_wait(&shared.landed, 0), wrong);
  for (int i = t; i < 2 * 4 * kPitch; i += static_cast<int>(blockDim.x)) {
    const int plane = i / (4 * kPitch) + 1, row = i / kPitch % 4 + 3, column = i % kPitch - 2;
    const bool inside = column >= 0 && column < 40 && row < 5 && plane < 2;
    const int unit = i % kPitch / 8, mask = swizzle == Swizzle::none ? 0 : kPitch / 8 - 1;
    const int at = i / kPitch * kPitch + (unit ^ (i / kPitch >> (3 - kMode) & mask)) * 8 + i % 8;
    const uint16_t value = (&shared.box[0][0][0])[at];
    expect(value == (inside ? plane * 200 + row * 40 + column : 0), wrong);
  }
  for (int i = t; i < 64; i += static_cast<int>(blockDim.x))
    expect(shared.line[i] == line[i], wrong);
  __syncthreads();
  if (t == 0) {
    fence_proxy_async();
    cp_async_bulk_store(line_out, shared.line, sizeof(shared.line));
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group<0>();
  }
}

// Floats of shared memory added to some of a block's own in global memory.
struct SumShared {
  alignas(16) float more[32];
};

inline __global__ void bulk_sums(int* wrong) {
  using namespace emulation;
  static float sums[2][32];
  auto& shared = shared_memory<SumShared>();
  const int t = static_cast<int>(threadIdx.x);
  float* own = sums[blockIdx.x];
  own[t] = static_cast<float>(t);
  shared.more[t] = static_cast<float>(t * t);
  fence_proxy_async();
  __syncthreads();
  if (t == 0) {
    cp_reduce_async_bulk_add(own, shared.more, sizeof(shared.more));
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group_read<0>();
    for (float& value : shared.more) value = -1;  // it has been read
    cp_async_bulk_wait_group<0>();
  }
  __syncthreads();
  expect(own[t] == static_cast<float>(t + t * t), wrong);
}

// One warp hands values to another through a ring of named barriers: bar.arrive does not wait.
struct RingShared {
  int value[2];
};

inline __global__ void a_barrier_too_many(int*) { emulation::bar_sync(16, 64); }

inline __global__ void named_barriers(int* wrong) {
  using namespace emulation;
  auto& shared = shared_memory<RingShared>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < 6; ++i) {
    const int slot = i % 2, full = 1 + slot, empty = 3 + slot;
    if (warp == 0) {
      if (i >= 2) bar_sync(empty, 64);
      if (lane == 0) shared.value[slot] = i * i;
      bar_arrive(full, 64);
    } else {
      bar_sync(full, 64);
      expect(shared.value[slot] == i * i, wrong);
      if (i < 4) bar_arrive(empty, 64);
    }
  }
}
