#include "cpu/silu_mul.h"

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kElementsPerThread = 16384;

AFNEXT_INLINE F32 gated(F32 gate, F32 up) { return gate / (exp(-gate) + 1.0f) * up; }

template <typename T>
void rows(const SiluMulArgs& a) {
  const int64_t grain = a.width > 0 ? (kElementsPerThread + a.width - 1) / a.width : 1;
  parallel_for(a.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = static_cast<const T*>(a.gate) + r * a.gate_stride;
      const T* up = static_cast<const T*>(a.up) + r * a.up_stride;
      T* out = static_cast<T*>(a.out) + r * a.width;
      int64_t i = 0;
      for (; i + kLanes <= a.width; i += kLanes)
        store(out + i, gated(load(gate + i), load(up + i)));
      if (const int n = static_cast<int>(a.width - i); n > 0) {
        store_n(out + i, gated(load_n(gate + i, n), load_n(up + i, n)), n);
      }
    }
  });
}

}  // namespace

void silu_mul(const SiluMulArgs& args) {
  args.dtype == DType::f32 ? rows<float>(args) : rows<bf16>(args);
}

AFNEXT_REGISTER(silu_mul, SiluMulArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
