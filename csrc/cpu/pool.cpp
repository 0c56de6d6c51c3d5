#include "cpu/pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace afnext::cpu {
namespace {

constexpr int kPiecesPerThread = 4;
// With more threads than these, one that shares a core matters little, and moving all of them costs
// too much.
constexpr int kFewThreads = 8;
// As long as waking a sleeper takes the system at worst (25 to 50 us on virtual machines): whatever
// comes, no more than twice the best is lost.
constexpr std::chrono::microseconds kSpin{50};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

thread_local bool t_inside = false;

struct Inside {
  Inside() { t_inside = true; }
  ~Inside() { t_inside = false; }
};

}  // namespace

bool Pool::inside() { return t_inside; }

// --- a job's pieces

bool Pool::Slot::finished() const {
  return failed.load(std::memory_order_relaxed) || next.load(std::memory_order_relaxed) >= pieces;
}

int Pool::Slot::take() {
  // Looking first keeps the counter from running away under many workers.
  if (next.load(std::memory_order_relaxed) >= pieces) return -1;
  const int piece = next.fetch_add(1, std::memory_order_relaxed);
  return piece < pieces ? piece : -1;
}

void Pool::Slot::call(int piece) {
  // The first `longer` pieces hold one item more.
  const int64_t size = count / pieces, longer = count % pieces;
  const int64_t begin = piece * size + std::min<int64_t>(piece, longer);
  try {
    body(context, begin, begin + size + (piece < longer ? 1 : 0));
  } catch (...) {
    if (!failed.exchange(true)) error = std::current_exception();
  }
}

// --- callers

void Pool::run(int64_t count, int64_t grain, detail::Body body, const void* context) {
  Slot* slot = take_slot();
  if (slot == nullptr) return body(context, 0, count);
  const int64_t wanted = kPiecesPerThread * threads_;
  slot->body = body;
  slot->context = context;
  slot->count = count;
  slot->pieces = static_cast<int>(std::min(wanted, std::max<int64_t>(1, count / grain)));
  slot->failed.store(false, std::memory_order_relaxed);
  slot->next.store(0, std::memory_order_relaxed);

  if (jobs_.fetch_add(1) == 0) leave_core_to_caller();
  const int busy = busy_.fetch_add(1) + 1;
  slot->state.store(kTaken | kOpen, std::memory_order_release);
  announce(std::min(slot->pieces - 1, threads_ - busy));
  work_on(*slot, false);
  busy_.fetch_sub(1);

  // Nothing is left to take: wait for those at work, not for those that never got a core.
  uint32_t state = slot->state.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  const auto alone = [&] {
    state = slot->state.load(std::memory_order_acquire);
    return (state & kHelpers) == 0;
  };
  if ((state & kHelpers) != 0 && !spin_until(alone)) {
    while (!alone()) slot->state.wait(state, std::memory_order_acquire);
  }
  const std::exception_ptr error = std::move(slot->error);
  slot->error = nullptr;
  slot->state.store(kFree, std::memory_order_release);
  // The core that this caller leaves may help the others.
  if (jobs_.fetch_sub(1) > 1) announce(1);
  if (error != nullptr) std::rethrow_exception(error);
}

Pool::Slot* Pool::take_slot() {
  for (Slot& slot : slots_) {
    uint32_t expected = kFree;
    if (slot.state.load(std::memory_order_relaxed) == kFree &&
        slot.state.compare_exchange_strong(expected, kTaken, std::memory_order_acquire))
      return &slot;
  }
  return nullptr;
}

void Pool::leave_core_to_caller() {
  if (!spin_ || threads_ > kFewThreads) return;
  const int core = current_core();
  if (core == callers_core_.load(std::memory_order_relaxed)) return;
  if (moving_.test_and_set(std::memory_order_acquire)) return;
  for (size_t i = 0; i < workers_.size(); ++i) kept_off_[i].move(workers_[i], core);
  callers_core_.store(core, std::memory_order_relaxed);
  moving_.clear(std::memory_order_release);
}

void Pool::announce(int helpers) {
  // In this order, and the reverse in worker(): either this thread sees the sleeper, or the sleeper
  // sees the event.
  events_.fetch_add(1);
  const int sleepers = sleepers_.load();
  if (helpers < sleepers) {  // none, where callers alone are as many as there may be
    for (int i = 0; i < helpers; ++i) events_.notify_one();
  } else if (sleepers > 0) {
    events_.notify_all();
  }
}

void Pool::work_on(Slot& slot, bool as_helper) {
  const Inside inside;
  const uint32_t seen = events_.load(std::memory_order_relaxed);
  while (!slot.failed.load(std::memory_order_relaxed)) {
    const int piece = slot.take();
    if (piece < 0) return;
    slot.call(piece);
    // Jobs came or went: a worker may be needed more elsewhere.
    if (as_helper && events_.load(std::memory_order_relaxed) != seen) return;
  }
}

// --- workers

// The open job with the fewest helpers that still has something to do, with this thread counted in.
Pool::Slot* Pool::join() {
  if (busy_.fetch_add(1) >= threads_) {
    busy_.fetch_sub(1);
    return nullptr;
  }
  uint32_t without_work = 0;
  for (;;) {
    int best = -1;
    uint32_t state = 0;
    for (int i = 0; i < kSlots; ++i) {
      const uint32_t s = slots_[i].state.load(std::memory_order_acquire);
      if ((s & kOpen) != 0 && (without_work >> i & 1) == 0 && (best < 0 || s < state))
        best = i, state = s;
    }
    if (best < 0) break;
    Slot& slot = slots_[best];
    if (!slot.state.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
    if (!slot.finished()) return &slot;
    leave(slot);
    without_work |= 1u << best;
  }
  busy_.fetch_sub(1);
  return nullptr;
}

void Pool::leave(Slot& slot) {
  const uint32_t state = slot.state.fetch_sub(1, std::memory_order_acq_rel);
  if ((state & (kOpen | kHelpers)) == 1) slot.state.notify_one();  // the last of a closed job
}

void Pool::worker() {
  ask_for_short_turns();
  for (;;) {
    const uint32_t seen = events_.load();
    if (stop_.load()) return;
    if (Slot* slot = join()) {
      work_on(*slot, true);
      busy_.fetch_sub(1);
      leave(*slot);
      continue;
    }
    const auto called = [&] { return events_.load(std::memory_order_relaxed) != seen; };
    if (spin_until(called)) continue;
    sleepers_.fetch_add(1);
    events_.wait(seen);
    sleepers_.fetch_sub(1);
  }
}

// Looks for `done` for a while. Yielding the core meanwhile would give it to one of torch's threads
// that spin until the system's next tick, 4 ms later perhaps: a sleeper is waked at once.
template <typename Done>
bool Pool::spin_until(const Done& done) const {
  if (!spin_) return done();
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

// --- life

Pool::Pool(int threads, bool spin) : threads_(threads), spin_(spin), kept_off_(threads - 1) {
  workers_.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker(); });
  } catch (
      const std::system_error&) {  // the system's limit of threads: those that there are will do
  }
}

Pool::~Pool() {
  stop_.store(true);
  events_.fetch_add(1);
  events_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

}  // namespace afnext::cpu
