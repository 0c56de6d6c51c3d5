#include "cpu/activation_bits.h"

#include <memory>

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr double kMostError = 0.01;
constexpr int64_t kElementsPerThread = 1 << 15;

struct Squares {
  double of_x, of_errors;
};

// A step of the largest over 127, rounded to the nearest, is off by step^2 / 12 on average.
template <typename T>
Squares of_row(const T* row, int64_t width, int64_t shared) {
  constexpr int kApart = 4;  // chains of sums and peaks: one alone waits for itself
  Squares squares{};
  for (int64_t first = 0; first < width; first += shared) {
    const int64_t count = shared < width - first ? shared : width - first;
    F32 sums[kApart] = {}, peaks[kApart] = {};
    const auto add = [&](F32 v, int to) {
      sums[to] = fma(v, v, sums[to]);
      peaks[to] = max(v * v, peaks[to]);
    };
    int64_t i = 0;
    for (; i + kApart * kLanes <= count; i += kApart * kLanes) {
      for (int j = 0; j < kApart; ++j) add(load(row + first + i + j * kLanes), j);
    }
    for (; i + kLanes <= count; i += kLanes) add(load(row + first + i), 0);
    if (i < count) add(load_n(row + first + i, static_cast<int>(count - i)), 0);
    const F32 peak = max(max(peaks[0], peaks[1]), max(peaks[2], peaks[3]));
    squares.of_x += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    squares.of_errors +=
        static_cast<double>(largest(peak)) / (127.0 * 127.0 * 12.0) * static_cast<double>(count);
  }
  return squares;
}

template <typename T>
int bits_of(const ActivationBitsArgs& a) {
  // Row by row, so that no number of threads changes a sum.
  const std::unique_ptr<Squares[]> rows(new Squares[a.rows]);
  parallel_for(a.rows, kElementsPerThread / (a.width + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      rows[r] = of_row(static_cast<const T*>(a.x) + r * a.x_stride, a.width, a.shared);
    }
  });
  Squares total{};
  for (int64_t r = 0; r < a.rows; ++r) {
    total.of_x += rows[r].of_x, total.of_errors += rows[r].of_errors;
  }
  // Written so that a NaN says no; what is infinite has errors so too.
  const bool few = total.of_errors <= kMostError * kMostError * total.of_x;
  return few && total.of_errors < __builtin_inf() ? 8 : 16;
}

}  // namespace

void activation_bits(const ActivationBitsArgs& args) {
  *args.bits = args.dtype == DType::f32 ? bits_of<float>(args) : bits_of<bf16>(args);
}

AFNEXT_REGISTER(activation_bits, ActivationBitsArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
