// What a kernel that starts before its predecessors have ended (griddepcontrol) must not read yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_set>

namespace emulation {

// Lines of global memory that something writes.
class Lines {
 public:
  void add(const void* pointer, size_t bytes) {
    each(pointer, bytes, [&](uintptr_t line) {
      if (line != latest_) lines_.insert(latest_ = line);
    });
  }
  void add(const Lines& other) { lines_.insert(other.lines_.begin(), other.lines_.end()); }
  void remove(const void* pointer, size_t bytes) {
    latest_ = 0;
    each(pointer, bytes, [&](uintptr_t line) { lines_.erase(line); });
  }
  bool any_of(const void* pointer, size_t bytes) const {
    bool found = false;
    each(pointer, bytes, [&](uintptr_t line) { found |= lines_.count(line) != 0; });
    return found;
  }
  void clear() { lines_.clear(), latest_ = 0; }

 private:
  static constexpr uintptr_t kBytes = 64;

  template <typename Do>
  static void each(const void* pointer, size_t bytes, Do with) {
    const auto first = reinterpret_cast<uintptr_t>(pointer);
    if (bytes == 0) return;
    for (uintptr_t line = first / kBytes; line * kBytes < first + bytes; ++line) with(line);
  }

  std::unordered_set<uintptr_t> lines_;
  uintptr_t latest_ = 0;
};

// Launches one after the other. A plain one waits for the end of all before, and so does a copy;
// until then, what kernels wrote is unfinished for those that start early.
class Stream {
 public:
  void finish() { unfinished.clear(); }
  // Memory that the host has filled, or allocated, since.
  void forget(const void* pointer, size_t bytes) { unfinished.remove(pointer, bytes); }

  Lines unfinished;
};

// How a launch follows the one before: `early`, it calls griddepcontrol_wait by itself. Without a
// stream nothing is checked.
struct Dependency {
  Stream* stream = nullptr;
  bool early = false;
};

}  // namespace emulation
