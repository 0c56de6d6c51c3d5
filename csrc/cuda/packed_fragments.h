// From the 16 bytes that a lane loads of a packed weight (cuda/packed_layout.h) to operands of
// mma.m16n8k16, in registers and exactly: integers less their zero point, and fp8, are elements of
// bf16 and of f16. Scales are left to float32.
//
// Integers become floats by their place in a fraction: a float that is 2**7 (bf16) or 2**10 (f16)
// plus the bits that were put in its fraction, less that power. With the masks that is, for two
// elements, one lop3 and one fma, and a shift for every pair of a word but the first.
#pragma once

#include "afnext/pack.h"
#include "cuda/arch/numbers.h"
#include "cuda/arch/pairs.h"
#include "cuda/packed_layout.h"

namespace afnext::cuda {

// Register pairs of constants.
template <typename T>
struct Pair;
template <>
struct Pair<bf16> {
  static constexpr uint32_t kOne = 0x3f803f80, kMinusOne = 0xbf80bf80;
  static constexpr uint32_t kCounter = 0x43004300;  // 128 + a fraction of 7 bits
};
template <>
struct Pair<f16> {
  static constexpr uint32_t kOne = 0x3c003c00;
  static constexpr uint32_t kCounter = 0x64006400;  // 1024 + a fraction of 10 bits
};
constexpr uint32_t kSignBits = 0x80008000;

// A operands of the two products that a block of K makes.
struct Operands {
  uint32_t product[2][4];
};
// What is to be added to int4 values of rows r and r + 8, as `Int4::offset` makes it.
struct Offsets {
  uint32_t row[2];
};

// In all of these `lane` points to the lane's 16 bytes of the first piece of a step (or of the part
// of one that begins with block 0), in global or shared memory.
constexpr int kPieceStride = arch::kWarp;  // from piece to piece, in 16 bytes

template <typename T>
struct Dense {
  static constexpr int kPieces = 8;
  static constexpr bool kScaled = false;

  template <typename X, int kStride = kPieceStride>
  static AFNEXT_DEVICE Operands operands(const uint4* lane, int block, const Offsets&) {
    const uint4 v = lane[2 * block * kStride], w = lane[(2 * block + 1) * kStride];
    return {{{v.x, v.y, v.z, v.w}, {w.x, w.y, w.z, w.w}}};
  }
};

struct Int8 {
  static constexpr int kPieces = 4;
  static constexpr bool kScaled = true;

  // Bytes 0 and 2 as two floats.
  static AFNEXT_DEVICE uint32_t even(uint32_t word, bf16) {
    // The sign bit lands in the exponent's last: 128 becomes 256, so the difference is signed.
    const uint32_t low = arch::and_or(word, 0x007f007f, Pair<bf16>::kCounter);
    const uint32_t sign = arch::and_or(word, 0x00800080, Pair<bf16>::kCounter);
    return arch::multiply_add(sign, Pair<bf16>::kMinusOne, low, bf16{});
  }
  static AFNEXT_DEVICE uint32_t even(uint32_t word, f16) {
    constexpr uint32_t minus_1152 = 0xe480e480;
    const uint32_t shifted = arch::and_xor(word, 0x00ff00ff, Pair<f16>::kCounter | 0x00800080);
    return arch::multiply_add(shifted, Pair<f16>::kOne, minus_1152, f16{});
  }
  template <typename T, int kStride = kPieceStride>
  static AFNEXT_DEVICE Operands operands(const uint4* lane, int block, const Offsets&) {
    const uint4 w = lane[block * kStride];
    return {{{even(w.x, T{}), even(w.x >> 8, T{}), even(w.y, T{}), even(w.y >> 8, T{})},
             {even(w.z, T{}), even(w.z >> 8, T{}), even(w.w, T{}), even(w.w >> 8, T{})}}};
  }
};

// e4m3, finite: exponent and fraction go where T has them, which makes them too small by a power
// of two, subnormals included.
struct Fp8 {
  static constexpr int kPieces = 4;
  static constexpr bool kScaled = true;

  // Bytes 1 and 3 as two floats.
  static AFNEXT_DEVICE uint32_t odd(uint32_t word, bf16) {
    constexpr uint32_t two_to_120 = 0x7b807b80;
    const uint32_t small = arch::and_or(word, kSignBits, word >> 4 & 0x07f007f0);
    return arch::multiply_add(small, two_to_120, kSignBits, bf16{});
  }
  static AFNEXT_DEVICE uint32_t odd(uint32_t word, f16) {
    constexpr uint32_t two_to_8 = 0x5c005c00;
    const uint32_t small = arch::and_or(word, kSignBits, word >> 1 & 0x3f803f80);
    return arch::multiply_add(small, two_to_8, kSignBits, f16{});
  }
  template <typename T, int kStride = kPieceStride>
  static AFNEXT_DEVICE Operands operands(const uint4* lane, int block, const Offsets&) {
    const uint4 w = lane[block * kStride];
    return {{{odd(w.x << 8, T{}), odd(w.x, T{}), odd(w.y << 8, T{}), odd(w.y, T{})},
             {odd(w.z << 8, T{}), odd(w.z, T{}), odd(w.w << 8, T{}), odd(w.w, T{})}}};
  }
};

struct Int4 {
  static constexpr int kPieces = 2;
  static constexpr bool kScaled = true;

  // Minus the counter's power and the zero point, twice.
  template <typename T>
  static AFNEXT_DEVICE uint32_t offset(uint32_t zero) {
    return (zero * 0x10001) | Pair<T>::kCounter | kSignBits;
  }
  template <typename T>
  static AFNEXT_DEVICE uint32_t nibbles(uint32_t word, int at, uint32_t offset) {
    const uint32_t counted = arch::and_or(word >> 4 * at, 0x000f000f, Pair<T>::kCounter);
    return arch::multiply_add(counted, Pair<T>::kOne, offset, T{});
  }
  template <typename T, int kStride = kPieceStride>
  static AFNEXT_DEVICE Operands operands(const uint4* lane, int block, const Offsets& offsets) {
    const uint2 w = reinterpret_cast<const uint2*>(lane + block / 2 * kStride)[block % 2];
    Operands a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a.product[0][i] = nibbles<T>(w.x, i, offsets.row[i % 2]);
      a.product[1][i] = nibbles<T>(w.y, i, offsets.row[i % 2]);
    }
    return a;
  }
};

// How a weight's values are stored, how many of K share a scale (0: a whole row), and whether a
// zero point stands beside it.
template <typename Values_, int kGroup_, bool kZeroPoints_>
struct Weight {
  using Values = Values_;
  static constexpr int kStepBytes = Values::kPieces * kPieceStride * 16;
  static constexpr int kGroup = kGroup_;
  static constexpr bool kZeroPoints = kZeroPoints_;
  static constexpr int kGroups = kGroup > 0 ? kStepDepth / kGroup : 0;  // of a step
  // Of a lane: rows r and r + 8 of a step's groups.
  static constexpr int kScaleBytes = kGroups * 2 * (kZeroPoints ? 4 : 2);
};

// A lane's scales of one group: rows r and r + 8.
struct Scales {
  float row[2];
  Offsets offsets;
};
// From the lane's kScaleBytes of a step in shared or global memory.
template <typename T, typename W>
AFNEXT_DEVICE Scales group_scales(const unsigned char* lane, int group) {
  if constexpr (W::kZeroPoints) {
    const auto both = reinterpret_cast<const uint2*>(lane)[group];
    return {{arch::bits_float(both.x << 16), arch::bits_float(both.y << 16)},
            {{Int4::offset<T>(both.x >> 16), Int4::offset<T>(both.y >> 16)}}};
  } else {
    const auto both = reinterpret_cast<const uint32_t*>(lane)[group];
    return {{arch::bits_float(both << 16), arch::bits_float(both & 0xffff0000)},
            {{Int4::offset<T>(8), Int4::offset<T>(8)}}};
  }
}

// Calls `use` with a Weight of this view, whose dense values are T.
template <typename T, typename Use>
void with_weight(const PackedView& view, const Use& use) {
  switch (view.format) {
    case WeightFormat::int8:
      return view.group == 0 ? use(Weight<Int8, 0, false>{}) : use(Weight<Int8, 128, false>{});
    case WeightFormat::fp8:
      return use(Weight<Fp8, 0, false>{});
    case WeightFormat::int4:
      if (view.group == 128) {
        return view.zero_points ? use(Weight<Int4, 128, true>{}) : use(Weight<Int4, 128, false>{});
      }
      return view.zero_points ? use(Weight<Int4, 32, true>{}) : use(Weight<Int4, 32, false>{});
    default:
      return use(Weight<Dense<T>, 0, false>{});
  }
}

}  // namespace afnext::cuda
