// The pool behind parallel_for: jobs lie in slots, and idle workers help whichever is open.
//
// A caller fills a free slot, opens it and works on it like everyone else; workers join the open
// job with the fewest helpers. Nobody takes a lock: a slot's state counts who is inside, and a
// caller whose pieces are all taken closes the slot and waits for those who are still at work.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include "cpu/cores.h"
#include "cpu/parallel.h"

namespace afnext::cpu {

constexpr int kMaxThreads = 1024;

class Pool {
 public:
  // `threads`: those that share the work, a caller included.
  // `spin`: whether idle threads look out for a while before they sleep. Only where each has a
  // core.
  Pool(int threads, bool spin);
  ~Pool();  // nobody may be inside run()
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void run(int64_t count, int64_t grain, detail::Body body, const void* context);

  // Whether the calling thread is at work for some pool.
  static bool inside();

 private:
  // A slot's state: whether workers may join, and how many are inside.
  static constexpr uint32_t kFree = 0, kTaken = 1u << 31, kOpen = 1u << 30, kHelpers = kOpen - 1;

  struct alignas(64) Slot {
    std::atomic<uint32_t> state{kFree};
    // Written by the caller while nobody else is inside.
    detail::Body body;
    const void* context;
    int64_t count;
    int pieces;
    std::exception_ptr error;
    std::atomic<bool> failed;
    alignas(64) std::atomic<int> next;  // the first piece not taken

    bool finished() const;
    int take();  // a piece, or -1
    void call(int piece);
  };
  static constexpr int kSlots = 8;  // a ninth caller works alone

  Slot* take_slot();
  void leave_core_to_caller();
  void announce(int helpers);
  void work_on(Slot& slot, bool as_helper);
  Slot* join();
  void leave(Slot& slot);
  void worker();
  template <typename Done>
  bool spin_until(const Done& done) const;

  Slot slots_[kSlots];
  // Changes whenever an idle worker should look around; they sleep on it.
  alignas(64) std::atomic<uint32_t> events_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> busy_{0};  // threads at work, callers among them
  std::atomic<int> jobs_{0};              // slots in use
  const int threads_;
  const bool spin_;
  std::atomic<int> callers_core_{-1};  // that workers are kept off
  std::atomic_flag moving_;
  std::vector<KeptOff> kept_off_;  // for each of the workers
  std::vector<std::thread> workers_;
};

}  // namespace afnext::cpu
