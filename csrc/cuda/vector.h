// Neighbouring elements that one access moves: 16 bytes where rows allow it, else one element.
#pragma once

#include "cuda/arch/numbers.h"

namespace afnext::cuda {

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T at[kCount];
};

template <typename T>
constexpr int kWidest = 16 / sizeof(T);

template <int kCount, typename T>
AFNEXT_DEVICE Vector<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}
template <int kCount, typename T>
AFNEXT_DEVICE void store(T* to, const Vector<T, kCount>& value) {
  *reinterpret_cast<Vector<T, kCount>*>(to) = value;
}

}  // namespace afnext::cuda
