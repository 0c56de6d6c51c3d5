// Atomics: of int, unsigned, unsigned long long and float. Blocks may run on several OS threads, so
// what CUDA makes atomic is atomic here.
#pragma once

#include <source_location>

namespace emulation {

enum class Atomic { add, min, max, exchange };

// The value before. Outside of instrumented code, which would see plain accesses.
template <typename T>
T atomic(Atomic kind, T* address, T value, const std::source_location& where);
template <typename T>
T atomic_cas(T* address, T expected, T value, const std::source_location& where);

}  // namespace emulation

template <typename T>
T atomicAdd(T* address, T value, std::source_location here = std::source_location::current()) {
  return emulation::atomic(emulation::Atomic::add, address, value, here);
}
template <typename T>
T atomicMin(T* address, T value, std::source_location here = std::source_location::current()) {
  return emulation::atomic(emulation::Atomic::min, address, value, here);
}
template <typename T>
T atomicMax(T* address, T value, std::source_location here = std::source_location::current()) {
  return emulation::atomic(emulation::Atomic::max, address, value, here);
}
template <typename T>
T atomicExch(T* address, T value, std::source_location here = std::source_location::current()) {
  return emulation::atomic(emulation::Atomic::exchange, address, value, here);
}
template <typename T>
T atomicCAS(T* address, T expected, T value,
            std::source_location here = std::source_location::current()) {
  return emulation::atomic_cas(address, expected, value, here);
}
