#include "cpu/all_to_all.h"

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kElementsPerThread = 32768;

template <typename T>
T* row_at(const AllToAllArgs& a, int64_t token, int place) {
  const HeadPlaces& table = *a.table;
  const int peer = table.peer[place], begin = table.offset[peer];
  const int64_t heads = table.offset[peer + 1] - begin;
  return reinterpret_cast<T*>(table.base[peer]) + (token * heads + place - begin) * a.dim;
}

// A token's head from all of its places.
template <typename T>
void gather(const AllToAllArgs& a, int64_t token, int head, T* out) {
  const HeadPlaces& table = *a.table;
  const int first = table.first[head], end = table.first[head + 1];
  if (end - first == 1) {
    std::memcpy(out, row_at<T>(a, token, table.by_head[first]), a.dim * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < a.dim; i += kLanes) {
    const int n = static_cast<int>(a.dim - i < kLanes ? a.dim - i : kLanes);
    F32 sum{};
    for (int k = first; k < end; ++k) {
      sum += load_n(row_at<T>(a, token, table.by_head[k]) + i, n);
    }
    store_n(out + i, sum, n);
  }
}

template <typename T>
void move(const AllToAllArgs& a) {
  const HeadPlaces& table = *a.table;
  const int64_t work = a.dim * (a.unpack ? table.heads : table.places);
  parallel_for(a.tokens, kElementsPerThread / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      T* x = static_cast<T*>(a.x) + token * a.token_stride;
      if (a.unpack) {
        for (int h = 0; h < table.heads; ++h) gather(a, token, h, x + h * a.head_stride);
        continue;
      }
      for (int place = 0; place < table.places; ++place) {
        std::memcpy(row_at<T>(a, token, place), x + table.head[place] * a.head_stride,
                    a.dim * sizeof(T));
      }
    }
  });
}

}  // namespace

void all_to_all(const AllToAllArgs& args) {
  args.dtype == DType::f32 ? move<float>(args) : move<bf16>(args);
}

AFNEXT_REGISTER(all_to_all, AllToAllArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
