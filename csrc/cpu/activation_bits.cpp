#include "cpu/activation_bits.h"

#include <algorithm>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/quantized_panel.h"

namespace afnext::cpu {
namespace {

constexpr int64_t kFewRows = 16;
constexpr double kMostError = 0.01;

struct Squares {
  double of_x, of_errors;
};

float to_float(float x) { return x; }
float to_float(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// A step of the largest over 127, rounded to the nearest, is off by step^2 / 12 on average.
template <typename T>
Squares of_row(const T* row, int64_t k, int64_t shared) {
  constexpr int kSums = 16;  // apart, so that the compiler may use vectors
  Squares squares{};
  for (int64_t first = 0; first < k; first += shared) {
    float sums[kSums] = {}, peaks[kSums] = {};
    const int64_t count = std::min(shared, k - first);
    for (int64_t i = 0; i + kSums <= count; i += kSums) {
      for (int j = 0; j < kSums; ++j) {
        const float x = to_float(row[first + i + j]);
        sums[j] += x * x;
        peaks[j] = peaks[j] > x * x ? peaks[j] : x * x;
      }
    }
    for (int64_t i = count / kSums * kSums; i < count; ++i) {
      const float x = to_float(row[first + i]);
      sums[0] += x * x;
      peaks[0] = std::max(peaks[0], x * x);
    }
    const float peak = *std::max_element(peaks, peaks + kSums);
    for (const float sum : sums) squares.of_x += sum;
    squares.of_errors +=
        static_cast<double>(peak) / (127.0 * 127.0 * 12.0) * static_cast<double>(count);
  }
  return squares;
}

}  // namespace

int activation_bits(const PackedLinearArgs& a) {
  if (a.m < kFewRows) return 16;
  const int64_t shared = kBlock * QuantizedPanel(a.weight).scale_blocks(8);
  // Row by row, so that no number of threads changes a sum.
  const std::unique_ptr<Squares[]> rows(new Squares[a.m]);
  parallel_for(a.m, (1 << 15) / (a.weight.k + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      rows[r] =
          a.dtype == DType::f32
              ? of_row(static_cast<const float*>(a.x) + r * a.x_stride, a.weight.k, shared)
              : of_row(static_cast<const uint16_t*>(a.x) + r * a.x_stride, a.weight.k, shared);
    }
  });
  Squares total{};
  for (int64_t r = 0; r < a.m; ++r) {
    total.of_x += rows[r].of_x, total.of_errors += rows[r].of_errors;
  }
  // Written so that a NaN says no; what is infinite has errors so too.
  return total.of_errors <= kMostError * kMostError * total.of_x &&
                 total.of_errors < __builtin_inf()
             ? 8
             : 16;
}

}  // namespace afnext::cpu
