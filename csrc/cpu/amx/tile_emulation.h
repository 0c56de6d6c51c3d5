// AMX tiles in plain C++, after the pseudocode of Intel's Software Developer's Manual, volume 2.
// What raises an exception there ends the process here.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {
namespace emulated {

struct Tile {
  int rows = 0, row_bytes = 0;
  alignas(64) uint8_t data[16][64] = {};

  template <typename T>
  T get(int row, int column) const {
    T value;
    std::memcpy(&value, &data[row][column * sizeof(T)], sizeof(T));
    return value;
  }
  template <typename T>
  void set(int row, int column, T value) {
    std::memcpy(&data[row][column * sizeof(T)], &value, sizeof(T));
  }
};

struct State {
  bool configured = false;
  Tile tiles[8];
};

inline State& state() {
  static thread_local State s;
  return s;
}

inline void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "afnext: emulated tiles: %s\n", what);
  std::abort();
}

inline void configure(uint8_t palette, const uint16_t* row_bytes, const uint8_t* rows) {
  check(palette == 1, "the only palette is 1");
  State& s = state();
  s.configured = true;
  for (int i = 0; i < 8; ++i) {
    check(rows[i] <= 16 && row_bytes[i] <= 64 && (rows[i] == 0) == (row_bytes[i] == 0),
          "a tile has at most 16 rows of 64 bytes");
    s.tiles[i] = Tile();
    s.tiles[i].rows = rows[i];
    s.tiles[i].row_bytes = row_bytes[i];
  }
}

inline void release() { state() = State(); }

inline Tile& tile(int index) {
  State& s = state();
  check(s.configured && s.tiles[index].rows > 0, "use of a tile that is not configured");
  return s.tiles[index];
}

inline void zero(int index) { std::memset(tile(index).data, 0, sizeof(Tile::data)); }

inline void load(int index, const void* rows, int64_t stride) {
  Tile& t = tile(index);
  std::memset(t.data, 0, sizeof(t.data));
  for (int r = 0; r < t.rows; ++r) {
    std::memcpy(t.data[r], static_cast<const char*>(rows) + r * stride,
                static_cast<size_t>(t.row_bytes));
  }
}

inline void store(int index, void* rows, int64_t stride) {
  const Tile& t = tile(index);
  for (int r = 0; r < t.rows; ++r) {
    std::memcpy(static_cast<char*>(rows) + r * stride, t.data[r], static_cast<size_t>(t.row_bytes));
  }
}

// sum [M, N] += a [M, K] @ b [K, N], in words of 32 bits.
inline void check_product(const Tile& sum, const Tile& a, const Tile& b) {
  check(&sum != &a && &sum != &b && &a != &b, "a product needs three tiles");
  check(sum.rows == a.rows && sum.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows &&
            a.row_bytes % 4 == 0 && b.row_bytes % 4 == 0,
        "the sizes of a product's tiles do not fit");
}

inline float flushed(float x) { return x < 1.17549435e-38f && x > -1.17549435e-38f ? 0.0f * x : x; }

// The even and the odd products are summed apart, over the whole depth, and meet in the end.
inline void dot_bf16(int sum_index, int a_index, int b_index) {
  Tile &sum = tile(sum_index), &a = tile(a_index), &b = tile(b_index);
  check_product(sum, a, b);
  for (int m = 0; m < sum.rows; ++m) {
    for (int n = 0; n < sum.row_bytes / 4; ++n) {
      float parts[2] = {};
      for (int k = 0; k < a.row_bytes / 4; ++k) {
        for (int i = 0; i < 2; ++i) {
          // A product of two bf16 is exact in float32: rounding after it is a fused rounding.
          parts[i] = flushed(parts[i] + flushed(to_float(a.get<bf16>(m, 2 * k + i))) *
                                            flushed(to_float(b.get<bf16>(k, 2 * n + i))));
        }
      }
      const float both = flushed(parts[0] + parts[1]);
      sum.set<float>(m, n, flushed(flushed(sum.get<float>(m, n)) + both));
    }
  }
}

// Quads of bytes, those of b unsigned. Sums wrap around.
inline void dot_i8_u8(int sum_index, int a_index, int b_index) {
  Tile &sum = tile(sum_index), &a = tile(a_index), &b = tile(b_index);
  check_product(sum, a, b);
  for (int m = 0; m < sum.rows; ++m) {
    for (int n = 0; n < sum.row_bytes / 4; ++n) {
      uint32_t total = sum.get<uint32_t>(m, n);
      for (int k = 0; k < a.row_bytes / 4; ++k) {
        for (int i = 0; i < 4; ++i) {
          total += static_cast<uint32_t>(int32_t{a.get<int8_t>(m, 4 * k + i)} *
                                         int32_t{b.get<uint8_t>(k, 4 * n + i)});
        }
      }
      sum.set<uint32_t>(m, n, total);
    }
  }
}

}  // namespace emulated
}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
