// wgmma (sm_90a): a warpgroup, four warps from a multiple of four on, multiplies tiles in shared
// memory asynchronously into registers.
//
//   wgmma_fence();                       // registers that products will read or write are ready
//   wgmma_mma_async<Major::k, Major::k>(sums, a_descriptor, b_descriptor, false, bf16{});
//   wgmma_commit_group();
//   wgmma_wait_group<0>();               // until then nobody touches sums, a or b
//
// Fragments as in the PTX manual, of row r = 16 * warp + lane / 4 and column pair c = lane % 4:
// sums 4 i to 4 i + 3 are columns 8 i + 2 c and the next of row r, then of row r + 8. A tile of a
// in four registers holds columns 2 c of rows r and r + 8, then columns 2 c + 8: sums 8 i to 8 i +
// 7, packed in pairs, are a's columns 16 i to 16 i + 15 of the next product.
#pragma once

#include <type_traits>

#include "cuda/arch/numbers.h"
#include "cuda/arch/platform.h"
#include "cuda/arch/tma.h"

namespace afnext::cuda::arch {

// What runs along the rows of memory: k, or m and n.
enum class Major { k, mn };

// A tile that begins at `tile`, in rows of the swizzle's size, eight of which lie `stride` bytes
// from the next eight. Where m or n runs along rows and has more elements than a row, `leading`
// bytes lie between row-sized pieces of it.
//
AFNEXT_DEVICE uint64_t wgmma_descriptor(const void* tile, Swizzle swizzle, uint32_t leading,
                                        uint32_t stride) {
  constexpr uint32_t kMask = 0x3fff;  // of 16-byte units
  const auto mode = static_cast<uint64_t>((4 - static_cast<int>(swizzle)) & 3);
  return static_cast<uint64_t>(shared_address(tile) >> 4 & kMask) |
         static_cast<uint64_t>(leading >> 4 & kMask) << 16 |
         static_cast<uint64_t>(stride >> 4 & kMask) << 32 | mode << 62;
}

// The same tile `bytes` further on: the next 16 of k lie 32 bytes on where k runs along rows, else
// 16 rows. Only the address changes, so that the rest stays a constant.
AFNEXT_DEVICE uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor >> 32 << 32 | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

#if defined(__CUDACC__)

AFNEXT_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
AFNEXT_DEVICE void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most `pending` of the latest groups are under way.
template <int pending>
AFNEXT_DEVICE void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Keeps the compiler from moving or copying registers that products may still read or write, which
// it does not know.
template <int count>
AFNEXT_DEVICE void hold(float (&registers)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int count>
AFNEXT_DEVICE void hold(uint32_t (&registers)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// The instruction's text counts its operands: n / 2 sums, then what follows.
#define AFNEXT_NUMBERS_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define AFNEXT_NUMBERS_64 \
  AFNEXT_NUMBERS_32       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AFNEXT_NUMBERS_96 \
  AFNEXT_NUMBERS_64       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define AFNEXT_NUMBERS_128 \
  AFNEXT_NUMBERS_96        \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AFNEXT_NUMBERS_192                                                           \
  AFNEXT_NUMBERS_128                                                                 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define AFNEXT_NUMBERS_256                                                                   \
  AFNEXT_NUMBERS_192                                                                         \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, " \
  "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "     \
  "%125, %126, %127"

#define AFNEXT_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define AFNEXT_SUMS_16(i) \
  AFNEXT_SUMS_4(i), AFNEXT_SUMS_4(i + 4), AFNEXT_SUMS_4(i + 8), AFNEXT_SUMS_4(i + 12)
#define AFNEXT_SUMS_32 AFNEXT_SUMS_16(0)
#define AFNEXT_SUMS_64 AFNEXT_SUMS_32, AFNEXT_SUMS_16(16)
#define AFNEXT_SUMS_96 AFNEXT_SUMS_64, AFNEXT_SUMS_16(32)
#define AFNEXT_SUMS_128 AFNEXT_SUMS_96, AFNEXT_SUMS_16(48)
#define AFNEXT_SUMS_192 AFNEXT_SUMS_128, AFNEXT_SUMS_16(64), AFNEXT_SUMS_16(80)
#define AFNEXT_SUMS_256 AFNEXT_SUMS_192, AFNEXT_SUMS_16(96), AFNEXT_SUMS_16(112)

// The instruction for m64 n k16, with its operands behind the sums.
#define AFNEXT_WGMMA(n, type, a, b, accumulate, majors, ...)                                  \
  asm volatile(                                                                               \
      "{\n"                                                                                   \
      ".reg .pred accumulate;\n"                                                              \
      "setp.ne.b32 accumulate, " accumulate                                                   \
      ", 0;\n"                                                                                \
      "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" AFNEXT_NUMBERS_##n \
      "}, " a ", " b ", accumulate, 1, 1, " majors                                            \
      ";\n"                                                                                   \
      "}"                                                                                     \
      : AFNEXT_SUMS_##n                                                                       \
      : __VA_ARGS__                                                                           \
      : "memory")
// a from shared memory, or from registers: the numbers are those of operands.
#define AFNEXT_FROM_SHARED(n, type, a, b, accumulate, a_major, b_major)                  \
  AFNEXT_WGMMA(n, type, "%" #a, "%" #b, "%" #accumulate, "%" #a_major ", %" #b_major,    \
               "l"(a_descriptor), "l"(b_descriptor), "r"(static_cast<int>(accumulates)), \
               "n"(static_cast<int>(kAMajor)), "n"(static_cast<int>(kBMajor)))
#define AFNEXT_FROM_REGISTERS(n, type, a0, a1, a2, a3, b, accumulate, b_major)               \
  AFNEXT_WGMMA(n, type, "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}", "%" #b, "%" #accumulate, \
               "%" #b_major, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor),  \
               "r"(static_cast<int>(accumulates)), "n"(static_cast<int>(kBMajor)))
// Of both element types.
#define AFNEXT_OF_SIZE(n, from, ...)         \
  if constexpr (kColumns == n) {             \
    if constexpr (std::is_same_v<T, bf16>) { \
      from(n, "bf16", __VA_ARGS__);          \
    } else {                                 \
      from(n, "f16", __VA_ARGS__);           \
    }                                        \
  }

template <int n, typename T>
constexpr bool kHasWgmma = (n == 32 || n == 64 || n == 96 || n == 128 || n == 192 || n == 256) &&
                           (std::is_same_v<T, bf16> || std::is_same_v<T, f16>);

// d = a @ b in float32, or += where it `accumulates`: m64, k16, and n of twice the sums.
template <Major kAMajor, Major kBMajor, typename T, int kSums>
AFNEXT_DEVICE void wgmma_mma_async(float (&d)[kSums], uint64_t a_descriptor, uint64_t b_descriptor,
                                   bool accumulates, T) {
  constexpr int kColumns = 2 * kSums;
  static_assert(kHasWgmma<kColumns, T>);
  AFNEXT_OF_SIZE(32, AFNEXT_FROM_SHARED, 16, 17, 18, 19, 20)
  AFNEXT_OF_SIZE(64, AFNEXT_FROM_SHARED, 32, 33, 34, 35, 36)
  AFNEXT_OF_SIZE(96, AFNEXT_FROM_SHARED, 48, 49, 50, 51, 52)
  AFNEXT_OF_SIZE(128, AFNEXT_FROM_SHARED, 64, 65, 66, 67, 68)
  AFNEXT_OF_SIZE(192, AFNEXT_FROM_SHARED, 96, 97, 98, 99, 100)
  AFNEXT_OF_SIZE(256, AFNEXT_FROM_SHARED, 128, 129, 130, 131, 132)
}
// The same with a in registers, which nobody changes before the product is waited for.
template <Major kBMajor, typename T, int kSums>
AFNEXT_DEVICE void wgmma_mma_async(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b_descriptor,
                                   bool accumulates, T) {
  constexpr int kColumns = 2 * kSums;
  static_assert(kHasWgmma<kColumns, T>);
  AFNEXT_OF_SIZE(32, AFNEXT_FROM_REGISTERS, 16, 17, 18, 19, 20, 21, 22)
  AFNEXT_OF_SIZE(64, AFNEXT_FROM_REGISTERS, 32, 33, 34, 35, 36, 37, 38)
  AFNEXT_OF_SIZE(96, AFNEXT_FROM_REGISTERS, 48, 49, 50, 51, 52, 53, 54)
  AFNEXT_OF_SIZE(128, AFNEXT_FROM_REGISTERS, 64, 65, 66, 67, 68, 69, 70)
  AFNEXT_OF_SIZE(192, AFNEXT_FROM_REGISTERS, 96, 97, 98, 99, 100, 101, 102)
  AFNEXT_OF_SIZE(256, AFNEXT_FROM_REGISTERS, 128, 129, 130, 131, 132, 133, 134)
}

#undef AFNEXT_OF_SIZE
#undef AFNEXT_FROM_REGISTERS
#undef AFNEXT_FROM_SHARED
#undef AFNEXT_WGMMA
#undef AFNEXT_SUMS_256
#undef AFNEXT_SUMS_192
#undef AFNEXT_SUMS_128
#undef AFNEXT_SUMS_96
#undef AFNEXT_SUMS_64
#undef AFNEXT_SUMS_32
#undef AFNEXT_SUMS_16
#undef AFNEXT_SUMS_4
#undef AFNEXT_NUMBERS_256
#undef AFNEXT_NUMBERS_192
#undef AFNEXT_NUMBERS_128
#undef AFNEXT_NUMBERS_96
#undef AFNEXT_NUMBERS_64
#undef AFNEXT_NUMBERS_32

#else

using emulation::wgmma_commit_group;
using emulation::wgmma_fence;
using emulation::wgmma_wait_group;
template <typename T, int count>
void hold(T (&)[count]) {}

template <typename T>
constexpr emulation::Element kElement =
    std::is_same_v<T, bf16> ? emulation::Element::bf16 : emulation::Element::f16;

template <Major kAMajor, Major kBMajor, typename T, int kSums>
void wgmma_mma_async(float (&d)[kSums], uint64_t a_descriptor, uint64_t b_descriptor,
                     bool accumulates, T, emulation::Here here = emulation::Here::current()) {
  emulation::wgmma_mma_async({d, 2 * kSums, nullptr, a_descriptor, b_descriptor, accumulates,
                              kAMajor == Major::mn, kBMajor == Major::mn, kElement<T>},
                             here);
}
template <Major kBMajor, typename T, int kSums>
void wgmma_mma_async(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b_descriptor,
                     bool accumulates, T, emulation::Here here = emulation::Here::current()) {
  emulation::wgmma_mma_async(
      {d, 2 * kSums, a, 0, b_descriptor, accumulates, false, kBMajor == Major::mn, kElement<T>},
      here);
}

#endif

}  // namespace afnext::cuda::arch
