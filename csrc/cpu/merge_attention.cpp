#include "cpu/merge_attention.h"

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kElementsPerThread = 16384;

template <typename T>
void row(const T* a, float weight_a, const T* b, float weight_b, int64_t dim, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes)
    store(out + i, weight_a * load(a + i) + weight_b * load(b + i));
  if (const int n = static_cast<int>(dim - i); n > 0) {
    store_n(out + i, weight_a * load_n(a + i, n) + weight_b * load_n(b + i, n), n);
  }
}

template <typename T>
void merge(const MergeAttentionArgs& m) {
  const int64_t size = m.heads * m.dim;
  const int64_t grain = size > 0 ? (kElementsPerThread + size - 1) / size : m.tokens;
  parallel_for(m.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t head = 0; head < m.heads; ++head) {
        const int64_t at = head * m.tokens + token, from = (token * m.heads + head) * m.dim;
        const float a = m.lse_a[at], b = m.lse_b[at];
        // Relative to the larger one nothing overflows; of two empty sets the union is empty.
        const float peak = a > b ? a : b;
        const float safe = peak == -__builtin_inff() ? 0.0f : peak;
        const float ea = __builtin_expf(a - safe), eb = __builtin_expf(b - safe), both = ea + eb;
        const float share = both == 0.0f ? 0.0f : 1.0f / both;
        m.lse[at] = peak + __builtin_logf(both);
        row(static_cast<const T*>(m.out_a) + from, ea * share,
            static_cast<const T*>(m.out_b) + from, eb * share, m.dim,
            static_cast<T*>(m.out) + from);
      }
    }
  });
}

}  // namespace

void merge_attention(const MergeAttentionArgs& args) {
  args.dtype == DType::f32 ? merge<float>(args) : merge<bf16>(args);
}

AFNEXT_REGISTER(merge_attention, MergeAttentionArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
