// The tile registers of Intel AMX: eight of 16 rows of 64 bytes.
//
// Levels from amx on get the instructions (in assembly: the intrinsics of GCC 12 take no template
// argument as a register's number, and its configuration load reads 8 of its 64 bytes). Any other
// level gets the same functions in plain C++, so that kernels for tiles are tested where there are
// none.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"
#if !defined(__AMX_TILE__)
#include "cpu/amx/tile_emulation.h"
#endif

namespace afnext::cpu::AFNEXT_ISA {

constexpr int kTiles = 8, kTileHeight = 16, kTileBytes = 64;  // a row's bytes

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

constexpr TileConfig full_tiles() {
  TileConfig config;
  for (int i = 0; i < kTiles; ++i) config.row_bytes[i] = kTileBytes, config.rows[i] = kTileHeight;
  return config;
}

#if defined(__AMX_TILE__)

AFNEXT_INLINE void tile_configure(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
AFNEXT_INLINE void tile_release() { __asm__ volatile("tilerelease" : :); }

template <int tile>
AFNEXT_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}
// Rows lie `stride` bytes apart.
template <int tile>
AFNEXT_INLINE void tile_load(const void* rows, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(rows), "r"(stride), "i"(tile)
                   : "memory");
}
// The same for rows that will not be needed in L1 again.
template <int tile>
AFNEXT_INLINE void tile_stream_load(const void* rows, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(rows), "r"(stride), "i"(tile)
                   : "memory");
}
template <int tile>
AFNEXT_INLINE void tile_store(void* rows, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(rows), "r"(stride), "i"(tile)
                   : "memory");
}
// sum [16, 16] of float32 += a [16, 32] @ b, bf16; row k of b holds the pairs (2k, 2k + 1) of 16
// columns.
template <int sum, int a, int b>
AFNEXT_INLINE void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}
// sum [16, 16] of int32 += a [16, 64] @ b, int8 in a and unsigned bytes in b; row k of b holds the
// quads (4k .. 4k + 3) of 16 columns.
template <int sum, int a, int b>
AFNEXT_INLINE void tile_dot_i8_u8() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

#else

AFNEXT_INLINE void tile_configure(const TileConfig& config) {
  emulated::configure(config.palette, config.row_bytes, config.rows);
}
AFNEXT_INLINE void tile_release() { emulated::release(); }
template <int tile>
AFNEXT_INLINE void tile_zero() {
  emulated::zero(tile);
}
template <int tile>
AFNEXT_INLINE void tile_load(const void* rows, int64_t stride) {
  emulated::load(tile, rows, stride);
}
template <int tile>
AFNEXT_INLINE void tile_stream_load(const void* rows, int64_t stride) {
  emulated::load(tile, rows, stride);
}
template <int tile>
AFNEXT_INLINE void tile_store(void* rows, int64_t stride) {
  emulated::store(tile, rows, stride);
}
template <int sum, int a, int b>
AFNEXT_INLINE void tile_dot_bf16() {
  emulated::dot_bf16(sum, a, b);
}
template <int sum, int a, int b>
AFNEXT_INLINE void tile_dot_i8_u8() {
  emulated::dot_i8_u8(sum, a, b);
}

#endif

// Configures this thread's tiles, all of full size, for as long as it lives.
class TileSession {
 public:
  AFNEXT_INLINE_METHOD TileSession() { tile_configure(kConfig); }
  AFNEXT_INLINE_METHOD ~TileSession() { tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

 private:
  static constexpr TileConfig kConfig = full_tiles();
};

}  // namespace afnext::cpu::AFNEXT_ISA
