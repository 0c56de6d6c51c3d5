// Products with at most 8 rows of x: the time is that of reading W once.
//
// Bytes: N K b with b = 2, 1 or 1/2 and scales; FLOPs: 2 M N K. By Little's law 4.3 TB/s x 800 ns =
// 3.4 MB are to be on their way, 26 KB to each of 132 multiprocessors. Here 16 or 24 warps have 2
// to 8 KB each on their way, straight into registers: a ring of units of 1 KB (32, 64 or 128 of K
// for 16 rows of W), whose slots the unrolled loop names. No shared memory, barrier or copy stands
// between a unit's bytes and its products; by cp.async int4 took a tenth longer.
//
// W is the A operand (16 rows a product) and x the B operand (8 rows). A block of threads owns
// whole rows of W, some tiles of 16, so that no sum leaves it: its warps take the units of a tile
// in turn and store their sums in shared memory; once for all tiles that fit there comes a barrier,
// and the threads add them in order: the same bits at every call. As many tiles to each block, and
// as many blocks to each multiprocessor, as let all end together: 224 tiles (3,584 rows) are two
// blocks to most of them. Three share 64 K registers at 80 each and have short rings, two at 128
// long ones.
//
// Where groups of K share scales, integers are multiplied exactly and summed apart, then added with
// their scale in float32: nothing is rounded but sums.
//
// Instructions of a warp for a unit of int4: 158, of them 66 in the integer pipe, which takes one
// in two clocks (and-or 35, shift 28), 32 fma that take the zero point off, 8 products, 7 loads.
//
// On an H200 (copies reach 4.27 TB/s), one row of x, in a graph: [37888, 3584] in bf16 60.8 us
// (4.47 TB/s), int8 32.9 us (4.13), fp8 32.8 us (4.15), int4 20.3 us (3.45: issue slots and memory
// wait for each other); at 8 rows 63.3, 34.4, 34.3 and 21.4 us. [3584, 3584] in int4 takes 4.0 us,
// of which 1.6 are bytes: what is left is the wait for the kernel before, x, and the end.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/arch/matrix.h"
#include "cuda/packed_linear_params.h"

namespace afnext::cuda {

constexpr int kNarrowRows = 8;  // of x, at most
constexpr int kNarrowWarps = 8;
constexpr int kNarrowThreads = kNarrowWarps * arch::kWarp;
constexpr int kNarrowSums = (48 << 10) / sizeof(float);  // of a block, at most

struct NarrowParams {
  LinearParams linear;
  int each;   // tiles of W for a block of threads,
  int batch;  // whose sums are finished together
};

struct NarrowShared {
  float sums[kNarrowSums];  // [tile][warp][row of x][row of W]: what is needed of it
};

// Blocks of threads on a multiprocessor, at most: what registers allow.
template <typename W>
constexpr int kNarrowResident = W::kScaleBytes <= 4 ? 3 : 2;

// What a lane of a warp loads at a time, where `resident` blocks are on a multiprocessor.
template <typename W, int resident>
struct NarrowUnit {
  static constexpr int kPieces = 2;
  static constexpr int kBlocks = kStepBlocks * kPieces / W::Values::kPieces;
  static constexpr int kDepth = kBlocks * kBlockDepth;
  static constexpr int kOfStep = kStepBlocks / kBlocks;
  static constexpr int kBytes = kPieces * kPieceStride * 16;  // of all lanes
  static constexpr int kScales = W::kScaleBytes / 4;
  static_assert(W::kGroups <= 1 || kOfStep == 1);  // else it would have some of a step's scales

  static constexpr int kRing =
      (W::kScaleBytes == 0 ? 4 : 2) * (resident == 2 && W::kScaleBytes <= 4 ? 2 : 1);

  uint4 values[kPieces];
  uint32_t scales[kScales > 0 ? kScales : 1];
};

template <typename T, typename W, int resident>
class NarrowWarp {
 public:
  using Unit = NarrowUnit<W, resident>;

  AFNEXT_DEVICE explicit NarrowWarp(const LinearParams& p)
      : p_(p),
        lane_(threadIdx.x % arch::kWarp),
        warp_(threadIdx.x / arch::kWarp),
        units_(p.steps * Unit::kOfStep) {
    // Rows beyond the last read it again: their products are columns that nobody looks at.
    const int row = lane_ / 4 < p.rows ? lane_ / 4 : p.rows - 1;
    x_ = static_cast<const T*>(p.x) + row * p.x_stride + lane_ % 4 * 8;
  }

  // Asks for the first units of tiles that `run` will multiply.
  AFNEXT_DEVICE void begin(int tile, int count) {
    const int64_t unit = static_cast<int64_t>(tile) * units_ + warp_;
    values_ = p_.values + unit * Unit::kBytes + 16 * lane_;
    scales_ = p_.scales + (unit / Unit::kOfStep * 8 + lane_ / 4) * W::kScaleBytes;
    left_ = count * units_ - warp_;
#pragma unroll
    for (int r = 0; r < Unit::kRing; ++r) load(ring_[r]);
  }

  // Stores this warp's part of the sums of `count` tiles, `stride` apart.
  AFNEXT_DEVICE void run(int count, float* sums, int stride) {
    sums += (warp_ * p_.rows) * kTileRows;
    float* const end = sums + count * stride;
    int unit = warp_;  // of the tile
    clear();
    for (; unit >= units_ && sums != end; sums += stride, unit -= units_) store(sums);
    if (sums == end) return;
    const int depth = units_ * Unit::kDepth, ahead = kNarrowWarps % units_ * Unit::kDepth;
    int x_at = unit * Unit::kDepth;
#pragma unroll
    for (int slot = 0; slot < kHeld; slot += Unit::kBlocks) {
#pragma unroll
      for (int b = 0; b < Unit::kBlocks; ++b) load_x(slot + b, x_at + b * kBlockDepth);
      x_at = x_at + ahead < depth ? x_at + ahead : x_at + ahead - depth;
    }
#pragma unroll 1
    while (true) {
#pragma unroll
      for (int r = 0; r < Unit::kRing; ++r) {
        multiply(ring_[r], r * Unit::kBlocks % kHeld, x_at);
        load(ring_[r]);
        x_at = x_at + ahead < depth ? x_at + ahead : x_at + ahead - depth;
        unit += kNarrowWarps;
        if (unit >= units_) {
          // A tile is done, and where K is short the next ones have nothing for this warp.
          do {
            store(sums);
            clear();
            sums += stride, unit -= units_;
          } while (unit >= units_ && sums != end);
          if (sums == end) return;
        }
      }
    }
  }

 private:
  static constexpr int kHeld = 4;  // blocks of x in registers, those of the next units
  static_assert(Unit::kRing * Unit::kBlocks % kHeld == 0);

  AFNEXT_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums_[0][i] = sums_[1][i] = 0;
  }

  AFNEXT_DEVICE void load(Unit& unit) {
    if (left_ <= 0) return;
#pragma unroll
    for (int i = 0; i < Unit::kPieces; ++i) {
      unit.values[i] = arch::load_streaming(values_ + i * kPieceStride * 16);
    }
#pragma unroll
    for (int i = 0; i < Unit::kScales; ++i) {
      unit.scales[i] = reinterpret_cast<const uint32_t*>(scales_)[i];
    }
    values_ += kNarrowWarps * Unit::kBytes;
    scales_ += kNarrowWarps / Unit::kOfStep * 8 * W::kScaleBytes;
    left_ -= kNarrowWarps;
  }

  AFNEXT_DEVICE void load_x(int slot, int at) {
    held_[slot] = *reinterpret_cast<const uint4*>(x_ + at);
  }

  // Two products at a time into sums of their own, which halves the chain that each waits for. x
  // gives way to that of the unit for which its registers are next, at x_at.
  AFNEXT_DEVICE void multiply(const Unit& unit, int slot, int x_at) {
    constexpr int kGroupBlocks = Unit::kBlocks / (W::kGroups > 1 ? W::kGroups : 1);
    Scales scales;
    float part[2][4];
#pragma unroll
    for (int b = 0; b < Unit::kBlocks; ++b) {
      if constexpr (W::kGroup > 0) {
        if (b % kGroupBlocks == 0) {
          scales = group_scales<T, W>(reinterpret_cast<const unsigned char*>(unit.scales),
                                      b / kGroupBlocks);
#pragma unroll
          for (int i = 0; i < 4; ++i) part[0][i] = part[1][i] = 0;
        }
      }
      const Operands a = W::Values::template operands<T, 1>(unit.values, b, scales.offsets);
      const uint4 v = held_[slot + b];
      const uint32_t x[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        arch::mma_sync(W::kGroup > 0 ? part[h] : sums_[h], a.product[h], x[h], T{});
      }
      load_x(slot + b, x_at + b * kBlockDepth);
      if constexpr (W::kGroup > 0) {
        if ((b + 1) % kGroupBlocks == 0) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums_[0][i] += scales.row[i / 2] * (part[0][i] + part[1][i]);
        }
      }
    }
  }

  AFNEXT_DEVICE void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * (lane_ % 4) + i % 2;
      if (row < p_.rows) {
        sums[row * kTileRows + lane_ / 4 + 8 * (i / 2)] = sums_[0][i] + sums_[1][i];
      }
    }
  }

  const LinearParams& p_;
  const int lane_, warp_, units_;  // units of a tile
  int left_;                       // > 0: units not yet asked for
  const unsigned char *values_, *scales_;
  const T* x_;
  Unit ring_[Unit::kRing];
  uint4 held_[kHeld];
  float sums_[2][4];
};

// The sums of `count` tiles, by all threads.
template <typename T, typename W>
AFNEXT_DEVICE void finish_narrow(const LinearParams& p, const float* sums, int stride, int tile,
                                 int count) {
  const int width = width_of(p.end);
#pragma unroll 1
  for (int i = threadIdx.x; i < p.rows * count * width; i += kNarrowThreads) {
    const LinearResult to(i, count, width);
    const float* from = sums + to.tile * stride + to.row * kTileRows + to.column;
    float sum = 0, up = 0;
#pragma unroll
    for (int w = 0; w < kNarrowWarps; ++w, from += p.rows * kTileRows) {
      sum += from[0];
      if (p.end.gate_up) up += from[kTileRows / 2];
    }
    sum *= row_scale<W>(p, tile + to.tile, to.column);
    if (p.end.gate_up) up *= row_scale<W>(p, tile + to.tile, to.column + kTileRows / 2);
    finish<T>(p.end, to.row, tile + to.tile, to.column, sum, up);
  }
}

template <typename T, typename W, int resident>
__global__ void __launch_bounds__(kNarrowThreads, resident)
    packed_linear_narrow_kernel(const NarrowParams p) {
  auto& shared = arch::shared_memory<NarrowShared>();
  const int stride = kNarrowWarps * p.linear.rows * kTileRows;
  int tile = static_cast<int>(blockIdx.x) * p.each;
  const int last = tile + p.each < p.linear.tiles ? tile + p.each : p.linear.tiles;
  int count = last - tile < p.batch ? last - tile : p.batch;
  NarrowWarp<T, W, resident> warp(p.linear);
  warp.begin(tile, count);
  arch::griddepcontrol_wait();
  arch::griddepcontrol_launch_dependents();
#pragma unroll 1
  while (true) {
    warp.run(count, shared.sums, stride);
    const int next = tile + count, next_count = last - next < p.batch ? last - next : p.batch;
    if (next < last) warp.begin(next, next_count);
    __syncthreads();
    finish_narrow<T, W>(p.linear, shared.sums, stride, tile, count);
    if (next >= last) return;
    __syncthreads();  // all have read the sums
    tile = next, count = next_count;
  }
}

}  // namespace afnext::cuda
