#include "emulation/atomics.h"

#include <algorithm>
#include <atomic>

#include "emulation/block.h"

namespace emulation {
namespace {

// Atomics do not race with each other, but with plain writes before them.
template <typename T>
void check(const T* address, const Where& where) {
  Block& block = Block::current();
  if (!block.shared.holds(address)) {
    return block.write_global(address, sizeof(T), block.accessor(where));
  }
  const uint32_t at = block.shared.check(address, sizeof(T), sizeof(T), "an atomic", where);
  if (block.options.detect_races) block.races.read_atomic(at, sizeof(T), block.accessor(where));
}

template <typename T>
T combined(Atomic kind, T old, T value) {
  switch (kind) {
    case Atomic::add:
      return old + value;
    case Atomic::min:
      return std::min(old, value);
    case Atomic::max:
      return std::max(old, value);
    case Atomic::exchange:
      break;
  }
  return value;
}

}  // namespace

template <typename T>
T atomic(Atomic kind, T* address, T value, const Where& where) {
  check(address, where);
  std::atomic_ref<T> target(*address);
  T old = target.load();
  while (!target.compare_exchange_weak(old, combined(kind, old, value))) {
  }
  return old;
}

template <typename T>
T atomic_cas(T* address, T expected, T value, const Where& where) {
  check(address, where);
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, value);
  return expected;
}

template int atomic(Atomic, int*, int, const Where&);
template unsigned atomic(Atomic, unsigned*, unsigned, const Where&);
template unsigned long long atomic(Atomic, unsigned long long*, unsigned long long, const Where&);
template float atomic(Atomic, float*, float, const Where&);
template int atomic_cas(int*, int, int, const Where&);
template unsigned atomic_cas(unsigned*, unsigned, unsigned, const Where&);
template unsigned long long atomic_cas(unsigned long long*, unsigned long long, unsigned long long,
                                       const Where&);

}  // namespace emulation
