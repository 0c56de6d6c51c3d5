// cp.async: a thread's copies from global to shared memory, which land when it waits for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "emulation/error.h"

namespace emulation {

class AsyncCopies {
 public:
  // Copies `source_bytes` of `bytes` (4, 8 or 16) and fills the rest with zeros.
  void issue(void* shared, const void* global, int bytes, int source_bytes, const Where& where);
  void commit();
  // Until at most `pending` of the latest groups are in flight.
  void wait(int pending);
  void check_end() const;

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes, source_bytes;
    Where where;
  };
  static void land(const Copy& copy);

  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

}  // namespace emulation
