#include "cpu/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "afnext/error.h"
#include "cpu/isa.h"

namespace afnext::cpu {
namespace {

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int initial_threads() {
  const char* text = std::getenv("AFNEXT_NUM_THREADS");
  if (text == nullptr || *text == '\0') return available_cores();
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (*end != '\0' || n < 1 || n > 1024) {
    throw Error("AFNEXT_NUM_THREADS: must be 1 to 1024, got '" + std::string(text) + "'");
  }
  return static_cast<int>(n);
}

thread_local bool t_inside = false;

// Workers sleep on a condition variable between jobs: they never spin against torch's threads.
class Pool {
 public:
  explicit Pool(int threads) {
    active_isa();  // asks for the tile registers before the first thread starts
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, int64_t piece, detail::Body body, const void* context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      count_ = count;
      piece_ = piece;
      next_.store(0, std::memory_order_relaxed);
      open_ = true;
      ++job_;
    }
    wake_.notify_all();
    drain();
    // Nothing is left to take: wait for those at work, not for those that never got a core.
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;
    done_.wait(lock, [this] { return working_ == 0; });
  }

 private:
  void drain() {
    t_inside = true;
    for (;;) {
      const int64_t begin = next_.fetch_add(piece_, std::memory_order_relaxed);
      if (begin >= count_) break;
      body_(context_, begin, std::min(begin + piece_, count_));
    }
    t_inside = false;
  }

  void work() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || (open_ && job_ != seen); });
      if (stop_) return;
      seen = job_;
      ++working_;
      lock.unlock();
      drain();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  detail::Body body_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0, piece_ = 1;
  std::atomic<int64_t> next_{0};
  uint64_t job_ = 0;
  int working_ = 0;    // workers inside drain()
  bool open_ = false;  // the job may still have pieces to take
  bool stop_ = false;
};

// Leaked on purpose: threads must not be joined from static destructors, and after a fork the child
// has none of them, so that it must start a pool of its own.
struct State {
  std::mutex owner;
  Pool* pool = nullptr;
  int threads = 0;
};

State* g_state = nullptr;

State& state() {
  static std::once_flag once;
  std::call_once(once, [] {
    g_state = new State;
    pthread_atfork(nullptr, nullptr, [] {
      const int threads = g_state->threads;
      g_state = new State;
      g_state->threads = threads;
      t_inside = false;
    });
  });
  return *g_state;
}

}  // namespace

int num_threads() {
  State& s = state();
  if (s.threads == 0) s.threads = initial_threads();
  return s.threads;
}

void set_num_threads(int threads) {
  if (threads < 1 || threads > 1024) {
    throw Error("set_num_threads: threads must be 1 to 1024, got " + std::to_string(threads));
  }
  State& s = state();
  std::lock_guard<std::mutex> lock(s.owner);
  delete s.pool;
  s.pool = nullptr;
  s.threads = threads;
}

namespace detail {

void run(int64_t count, int64_t grain, Body body, const void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int threads = num_threads();
  if (t_inside || threads == 1 || count <= grain) return body(context, 0, count);
  State& s = state();
  std::unique_lock<std::mutex> lock(s.owner, std::try_to_lock);
  if (!lock.owns_lock()) return body(context, 0, count);
  if (s.pool == nullptr) s.pool = new Pool(threads);
  // Four pieces a thread balance uneven work without much hand-over.
  const int64_t piece = std::max(grain, (count + threads * 4 - 1) / (threads * 4));
  s.pool->run(count, piece, body, context);
}

}  // namespace detail
}  // namespace afnext::cpu
