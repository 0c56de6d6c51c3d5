// Neighbouring elements that one access moves: 16 bytes where rows allow it, else one element.
#pragma once

#include "cuda/arch/numbers.h"

namespace afnext::cuda {

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T at[kCount];
};
template <int kCount>
struct Floats {
  float at[kCount];
};

template <typename T>
constexpr int kWidest = 16 / sizeof(T);

// What a vector is moved as. Of 16-bit elements the compiler makes an access each where it can not
// see that they fill registers.
template <int kCount>
struct alignas(sizeof(uint32_t) * kCount) Words {
  uint32_t at[kCount];
};
template <typename T, int kCount>
constexpr int kWords = sizeof(T) * kCount / sizeof(uint32_t);

template <int kCount, typename T>
AFNEXT_DEVICE Vector<T, kCount> load(const T* from) {
  if constexpr (kWords<T, kCount> > 0) {
    // By a variable, so that AddressSanitizer sees the load.
    using Loaded = Vector<T, kCount>;
    const auto words = *reinterpret_cast<const Words<kWords<T, kCount>>*>(from);
    return __builtin_bit_cast(Loaded, words);
  } else {
    return *reinterpret_cast<const Vector<T, kCount>*>(from);
  }
}
template <int kCount, typename T>
AFNEXT_DEVICE void store(T* to, const Vector<T, kCount>& value) {
  if constexpr (kWords<T, kCount> > 0) {
    using Moved = Words<kWords<T, kCount>>;
    *reinterpret_cast<Moved*>(to) = __builtin_bit_cast(Moved, value);
  } else {
    *reinterpret_cast<Vector<T, kCount>*>(to) = value;
  }
}

// To float32 and back, two 16-bit elements of a register at a time.
template <typename T, int kCount>
AFNEXT_DEVICE Floats<kCount> to_floats(const Vector<T, kCount>& from) {
  Floats<kCount> to;
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
    const auto words = __builtin_bit_cast(Words<kCount / 2>, from);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float2 two = arch::unpack(words.at[i], T{});
      to.at[2 * i] = two.x, to.at[2 * i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to.at[i] = arch::to_float(from.at[i]);
  }
  return to;
}
template <typename T, int kCount>
AFNEXT_DEVICE Vector<T, kCount> rounded(const Floats<kCount>& from) {
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
    Words<kCount / 2> words;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      words.at[i] = arch::pack(from.at[2 * i], from.at[2 * i + 1], T{});
    }
    using Packed = Vector<T, kCount>;
    return __builtin_bit_cast(Packed, words);
  } else {
    Vector<T, kCount> to;
#pragma unroll
    for (int i = 0; i < kCount; ++i) to.at[i] = arch::rounded<T>(from.at[i]);
    return to;
  }
}

}  // namespace afnext::cuda
