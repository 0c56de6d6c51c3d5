// A running block: its threads, which of them goes on next, its shared memory, and what it waits
// for.
#pragma once

#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "emulation/async_copy.h"
#include "emulation/error.h"
#include "emulation/fiber.h"
#include "emulation/mbarrier.h"
#include "emulation/options.h"
#include "emulation/races.h"
#include "emulation/shared_memory.h"
#include "emulation/stream.h"
#include "emulation/tensor_copy.h"
#include "emulation/vocabulary.h"
#include "emulation/warp.h"

namespace emulation {

struct Thread {
  Thread(void (*entry)()) : fiber(entry) {}

  uint3 index{};
  int linear = 0, warp = 0, lane = 0;
  bool finished = false;
  bool waited = false;            // for the kernels before (griddepcontrol)
  const char* waiting = nullptr;  // for what, where
  Where where;
  AsyncCopies copies;
  Fiber fiber;
};

class Block {
 public:
  // `written`: collects the lines of global memory that it writes.
  Block(const Options& options, Report* report, const Dependency& dependency, Lines* written);

  // Runs one block to its end. Throws what a thread throws, and Error on a deadlock.
  void run(dim3 grid, dim3 shape, uint3 index, size_t shared_bytes,
           const std::function<void()>& body);

  // The block that this OS thread is in the middle of, and its thread.
  static Block& current() { return *current_; }
  static bool in_kernel() { return current_ != nullptr && current_->running_ != nullptr; }
  Thread& thread() { return *running_; }
  Thread& thread(int linear) { return *threads_[linear]; }
  Warp& warp() { return warps_[running_->warp]; }

  // Others go on until somebody wakes this thread.
  void wait(const char* what, const Where& where);
  void wake(int linear) { ready_.push_back(linear); }
  // Others may go on first, as on hardware after any barrier.
  void yield(const Where& where);

  // bar.sync and bar.arrive: `threads` of the block, 0 for all that were launched.
  void barrier_sync(int id, int threads, const Where& where);
  void barrier_arrive(int id, int threads, const Where& where);

  // griddepcontrol.wait, and what a kernel that started early must not do before it: write global
  // memory, or read what is not finished. By a thread whose block's wait lies in its past.
  void griddepcontrol_wait();
  void read_global(const void* pointer, size_t bytes, const Accessor& who);
  void write_global(const void* pointer, size_t bytes, const Accessor& who);

  Accessor accessor(const Where& where) const {
    return {running_->warp, running_->lane, where, {}};
  }
  uint64_t random();
  // Ends the launch with this error as soon as the running thread lets go: for callers that must
  // not throw.
  void fail_later(const Error& error) {
    if (!error_) error_ = std::make_exception_ptr(error);
  }

  const Options& options;
  Counters& counters;
  dim3 grid, shape;
  uint3 index{};
  SharedMemory shared;
  Races races;
  Mbarriers mbarriers;
  TensorCopies tensor_copies;

 private:
  struct Barrier {
    std::vector<int> waiting;
    int arrived = 0, expected = 0;
    Clocks clocks{};
    Where where;
  };

  static void enter();
  void go_on();
  Thread* next();
  bool arrive(Barrier& barrier, int threads, const Where& where);
  void release(Barrier& barrier);
  void check_end();
  bool knows_of_wait();
  bool own(const void* pointer) const;

  static thread_local Block* current_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::map<int, Barrier> barriers_;
  std::deque<int> ready_;
  int live_ = 0;
  uint64_t random_state_;
  Fiber main_;
  Thread* running_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  const Dependency dependency_;
  Lines* written_;
  std::map<int, uint32_t> waits_;  // of warps, the first of each: when by its clock
  std::exception_ptr error_;
};

}  // namespace emulation
