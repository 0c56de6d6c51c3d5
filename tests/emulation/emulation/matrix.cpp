// ldmatrix, stmatrix and mma.sync: fragments as the PTX manual lays them out over the lanes.
#include <cstring>
#include <string>
#include <vector>

#include "emulation/block.h"
#include "emulation/numbers.h"

namespace emulation {
namespace {

// Lane l holds two neighbours of row l / 4: columns 2 (l % 4) and the next.
constexpr int row_of(int lane) { return lane / 4; }
constexpr int column_of(int lane) { return lane % 4 * 2; }

using Matrix = uint16_t[8][8];

MatrixMove& move_of(const Arguments& arguments, int lane) {
  return *static_cast<MatrixMove*>(arguments[lane]);
}

// Rows of 16 bytes in the same eighth of the banks take a pass each.
int passes(const uint32_t (&addresses)[8]) {
  int most = 0;
  for (uint32_t bank = 0; bank < 8; ++bank) {
    std::vector<uint32_t> rows;
    for (const uint32_t address : addresses) {
      if (address / 16 % 8 != bank) continue;
      bool seen = false;
      for (const uint32_t row : rows) seen |= row == address;
      if (!seen) rows.push_back(address);
    }
    most = std::max(most, static_cast<int>(rows.size()));
  }
  return most;
}

// Calls move(matrix, row, pointer) for the rows that lanes 8 i to 8 i + 7 name.
template <typename Move>
void each_row(Warp& warp, const Arguments& arguments, const char* name, const Where& where,
              bool writes, Move move) {
  Block& block = Block::current();
  ++block.counters.matrix_loads;
  for (int i = 0; i < move_of(arguments, 0).count; ++i) {
    uint32_t addresses[8];
    for (int r = 0; r < 8; ++r) {
      void* row = move_of(arguments, 8 * i + r).row;
      addresses[r] = block.shared.check(row, 16, 16, name, where);
      if (block.options.detect_races) {
        const Accessor who{warp.index(), 8 * i + r, where, nullptr};
        writes ? block.races.write(addresses[r], 16, who) : block.races.read(addresses[r], 16, who);
      }
      move(i, r, row);
    }
    block.counters.bank_conflicts += static_cast<uint64_t>(passes(addresses) - 1);
  }
}

}  // namespace

void load_matrix(Warp& warp, uint32_t, const Arguments& arguments, const Where& where) {
  Matrix matrices[4];
  each_row(warp, arguments, "ldmatrix", where, false,
           [&](int i, int r, const void* row) { std::memcpy(matrices[i][r], row, 16); });
  for (int lane = 0; lane < kLanes; ++lane) {
    const MatrixMove& call = move_of(arguments, lane);
    const int r = row_of(lane), c = column_of(lane);
    for (int i = 0; i < call.count; ++i) {
      const Matrix& m = matrices[i];
      const uint32_t low = call.transposed ? m[c][r] : m[r][c];
      const uint32_t high = call.transposed ? m[c + 1][r] : m[r][c + 1];
      call.registers[i] = low | high << 16;
    }
  }
}

void store_matrix(Warp& warp, uint32_t, const Arguments& arguments, const Where& where) {
  Matrix matrices[4];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MatrixMove& call = move_of(arguments, lane);
    const int r = row_of(lane), c = column_of(lane);
    for (int i = 0; i < call.count; ++i) {
      Matrix& m = matrices[i];
      (call.transposed ? m[c][r] : m[r][c]) = static_cast<uint16_t>(call.registers[i]);
      (call.transposed ? m[c + 1][r] : m[r][c + 1]) =
          static_cast<uint16_t>(call.registers[i] >> 16);
    }
  }
  each_row(warp, arguments, "stmatrix", where, true,
           [&](int i, int r, void* row) { std::memcpy(row, matrices[i][r], 16); });
}

namespace {

// m16n8 with 32 bytes of k: registers 0 and 2 of a are rows 0 to 7, 1 and 3 rows 8 to 15; 2 and 3
// are the second 16 bytes of k. Of b, register 0 is the first 16 bytes of k.
template <typename Sum>
void multiply(const Arguments& arguments, Element element) {
  const int per_register = 4 / bytes_of(element), k = 32 / bytes_of(element);
  static thread_local float a[16][32], b[32][8];
  Sum sums[16][8];
  const auto call = [&](int lane) { return static_cast<MatrixProduct*>(arguments[lane]); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const MatrixProduct& product = *call(lane);
    const int group = lane / 4, first = lane % 4 * per_register;
    for (int e = 0; e < per_register; ++e) {
      for (int half = 0; half < 2; ++half) {
        const int column = first + half * k / 2 + e;
        a[group][column] = number(element, product.a[2 * half], e);
        a[group + 8][column] = number(element, product.a[2 * half + 1], e);
        b[column][group] = number(element, product.b[half], e);
      }
    }
    for (int i = 0; i < 4; ++i) {
      sums[group + i / 2 * 8][column_of(lane) + i % 2] = static_cast<const Sum*>(product.c)[i];
    }
  }
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < k; ++i) {
      for (int c = 0; c < 8; ++c) sums[r][c] += static_cast<Sum>(a[r][i] * b[i][c]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      static_cast<Sum*>(call(lane)->d)[i] = sums[lane / 4 + i / 2 * 8][column_of(lane) + i % 2];
    }
  }
}

}  // namespace

void multiply_matrix(Warp&, uint32_t, const Arguments& arguments, const Where&) {
  ++Block::current().counters.matrix_products;
  const Element element = static_cast<MatrixProduct*>(arguments[0])->element;
  element == Element::s8 ? multiply<int32_t>(arguments, element)
                         : multiply<float>(arguments, element);
}

}  // namespace emulation
