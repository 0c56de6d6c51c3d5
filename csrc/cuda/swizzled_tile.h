// Rows of 16-bit elements in shared memory, as ldmatrix reads them.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/platform.h"

namespace afnext::cuda {

// A row is units of 16 bytes, which change places by the row's number, so that the same unit of
// eight rows in a line lies in eight different groups of banks.
template <typename T, int kRows, int kDim>
struct alignas(128) SwizzledTile {
  static constexpr int kUnit = 8;  // elements
  static constexpr int kUnits = kDim / kUnit;
  static constexpr int kTurn = kUnits % 8 == 0 ? 8 : 4;  // units that change places
  static_assert(kUnits % 4 == 0);

  T data[kRows * kDim];

  AFNEXT_DEVICE T* at(int row, int unit) {
    const int turn = kTurn == 8 ? row % 8 : row / 2 % 4;
    return data + (row * kUnits + (unit ^ turn)) * kUnit;
  }
  // From at(row, 0) or at(row, 1) to `units` further, an even number: an exclusive or, and an
  // addition that instructions have in them.
  AFNEXT_DEVICE static arch::SharedAddress further(arch::SharedAddress at, int units) {
    return (at ^ units % kTurn * kUnit * sizeof(T)) + units / kTurn * kTurn * kUnit * sizeof(T);
  }
  // One element, for writers that have no whole unit.
  AFNEXT_DEVICE T& element(int row, int column) { return at(row, column / kUnit)[column % kUnit]; }
};

}  // namespace afnext::cuda
