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
  static_assert(kUnits % 4 == 0);

  T data[kRows * kDim];

  AFNEXT_DEVICE T* at(int row, int unit) {
    const int turn = kUnits % 8 == 0 ? row % 8 : row / 2 % 4;
    return data + (row * kUnits + (unit ^ turn)) * kUnit;
  }
  // One element, for writers that have no whole unit.
  AFNEXT_DEVICE T& element(int row, int column) { return at(row, column / kUnit)[column % kUnit]; }
};

}  // namespace afnext::cuda
