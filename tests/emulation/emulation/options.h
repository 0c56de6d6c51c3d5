// How a launch runs and what it tells.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

// Which of the threads that can go on goes on. Hardware promises none of them.
enum class Order {
  first_in,  // in turn
  last_in,   // one warp runs as far ahead as it can
  random,    // by the seed; asynchronous copies land at random too, otherwise as late as they may
};

// Plain accesses are seen only in kernels that are compiled for the detector.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kInstrumented = false;
#else
constexpr bool kInstrumented = true;
#endif

struct Options {
  Order order = Order::first_in;
  uint64_t seed = 1;
  bool detect_races = kInstrumented;
  bool poison = true;  // what nobody has written, or what a copy has yet to bring, reads as NaN
  int os_threads = 1;  // that share the blocks
};

// Two accesses to the same shared memory that nothing orders, at least one of them a write.
struct Race {
  std::string kind;  // "read after write", "write after read", ...
  std::string now, before;
  uint32_t address = 0;  // in shared memory
  uint64_t count = 1;    // alike

  std::string text() const;
};

struct Counters {
  uint64_t switches = 0, barriers = 0, collectives = 0, shared_accesses = 0;
  uint64_t matrix_loads = 0,
           bank_conflicts = 0;  // of ldmatrix and stmatrix: passes beyond the first
  uint64_t matrix_products = 0, warpgroup_products = 0, async_copies = 0, tensor_copies = 0;

  void add(const Counters& other);
};

struct Report {
  std::vector<Race> races;
  Counters counters;
};

}  // namespace emulation
