#include "cpu/paged_append.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/rotate_row.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kElementsPerThread = 32768;

// The request of a token: the last that begins at or before it (empty ones are passed over).
AFNEXT_INLINE int64_t request_of(int64_t token, const PagedAppendArgs& a) {
  int64_t low = 0, high = a.requests;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.cu_seqlens[middle] <= token ? low : high) = middle;
  }
  return low;
}

template <typename T>
void tokens(const PagedAppendArgs& a) {
  const int64_t grain = kElementsPerThread / (a.kv_heads * a.dim) + 1;
  parallel_for(a.cu_seqlens[a.requests], grain, [&](int64_t begin, int64_t end) {
    float* cos = scratch<float>(0, 2 * a.half + a.dim + kLanes);
    float *sin = cos + a.half, *turned = sin + a.half;
    int64_t request = request_of(begin, a);
    for (int64_t t = begin; t < end; ++t) {
      while (a.cu_seqlens[request + 1] <= t) ++request;
      const int64_t position = a.start[request] + (t - a.cu_seqlens[request]);
      const int64_t page = a.page_table[request * a.table_stride + position / a.slots];
      if (a.half > 0) sincos_row(a.times[t], a.inv_freq, a.half, cos, sin);
      for (int64_t h = 0; h < a.kv_heads; ++h) {
        const int64_t slot = (page * a.kv_heads + h) * a.slots + position % a.slots;
        const int64_t row = slot * a.dim;
        const T* k = static_cast<const T*>(a.k.data) + t * a.k.token + h * a.k.head;
        const T* v = static_cast<const T*>(a.v.data) + t * a.v.token + h * a.v.head;
        if (a.k_scales != nullptr) {
          load_row(k, a.dim, turned);
          if (a.half > 0) rotate_row(turned, cos, sin, a.half, a.interleaved, turned);
          a.k_scales[slot] = quantize_row(turned, a.dim, static_cast<int8_t*>(a.k_pages) + row);
          load_row(v, a.dim, turned);
          a.v_scales[slot] = quantize_row(turned, a.dim, static_cast<int8_t*>(a.v_pages) + row);
          continue;
        }
        T* key = static_cast<T*>(a.k_pages) + row;
        if (a.half > 0) rotate_row(k, cos, sin, a.half, a.interleaved, key);
        std::memcpy(key + 2 * a.half, k + 2 * a.half, (a.dim - 2 * a.half) * sizeof(T));
        std::memcpy(static_cast<T*>(a.v_pages) + row, v, a.dim * sizeof(T));
      }
    }
  });
}

}  // namespace

void paged_append(const PagedAppendArgs& args) {
  args.dtype == DType::f32 ? tokens<float>(args) : tokens<bf16>(args);
}

AFNEXT_REGISTER(paged_append, PagedAppendArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
