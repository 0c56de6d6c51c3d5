#include "cpu/rotate.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/rotate_row.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kElementsPerThread = 16384;

template <typename T>
void tokens(const RotateArgs& a) {
  const int64_t grain = kElementsPerThread / (a.heads * a.width) + 1;
  parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end) {
    float* cos = scratch<float>(0, 2 * a.half + 1);
    float* sin = cos + a.half;
    for (int64_t t = begin; t < end; ++t) {
      if (a.angles != nullptr) {
        sincos_row(a.angles + t * a.half, a.half, cos, sin);
      } else {
        sincos_row(a.times[t], a.inv_freq, a.half, cos, sin);
      }
      if (a.inverse) {
        for (int64_t i = 0; i < a.half; ++i) sin[i] = -sin[i];
      }
      for (int64_t h = 0; h < a.heads; ++h) {
        const T* x = static_cast<const T*>(a.x) + t * a.token_stride + h * a.head_stride;
        T* out = static_cast<T*>(a.out) + (t * a.heads + h) * a.width;
        rotate_row(x, cos, sin, a.half, a.interleaved, out);
        std::memcpy(out + 2 * a.half, x + 2 * a.half, (a.width - 2 * a.half) * sizeof(T));
      }
    }
  });
}

}  // namespace

void rotate(const RotateArgs& args) {
  args.dtype == DType::f32 ? tokens<float>(args) : tokens<bf16>(args);
}

AFNEXT_REGISTER(rotate, RotateArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
