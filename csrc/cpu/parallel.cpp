#include "cpu/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "afnext/error.h"
#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/pool.h"

namespace afnext::cpu {
namespace {

int initial_threads() {
  const char* text = std::getenv("AFNEXT_NUM_THREADS");
  if (text == nullptr || *text == '\0') return std::min(available_cores(), kMaxThreads);
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (*end != '\0' || n < 1 || n > kMaxThreads) {
    throw Error("AFNEXT_NUM_THREADS: must be 1 to 1024, got '" + std::string(text) + "'");
  }
  return static_cast<int>(n);
}

// Leaked on purpose: threads must not be joined from static destructors, and after a fork the child
// has none of them, so that it must start a pool of its own.
struct State {
  std::mutex mutex;             // guards the pool's pointer and its making
  std::shared_ptr<Pool> pool;   // the last caller that still works on an old one ends it
  std::atomic<int> threads{0};  // 0 until somebody asks
};

std::atomic<State*> g_state{nullptr};

State& state() {
  static std::once_flag once;
  std::call_once(once, [] {
    g_state = new State;
    pthread_atfork(nullptr, nullptr, [] {
      const int threads = g_state.load()->threads;
      g_state = new State;
      g_state.load()->threads = threads;
    });
  });
  return *g_state.load(std::memory_order_acquire);
}

std::shared_ptr<Pool> current_pool(State& s) {
  const std::lock_guard lock(s.mutex);
  if (s.pool == nullptr) {
    active_isa();  // asks for the tile registers before the first thread starts
    const int threads = s.threads;
    s.pool = std::make_shared<Pool>(threads, threads <= available_cores());
  }
  return s.pool;
}

}  // namespace

int num_threads() {
  State& s = state();
  const int threads = s.threads.load(std::memory_order_relaxed);
  if (threads != 0) return threads;
  int expected = 0;
  const int first = initial_threads();
  return s.threads.compare_exchange_strong(expected, first) ? first : expected;
}

void set_num_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw Error("set_num_threads: threads must be 1 to 1024, got " + std::to_string(threads));
  }
  State& s = state();
  std::shared_ptr<Pool> old;  // outlives the lock: its threads end without it
  const std::lock_guard lock(s.mutex);
  old.swap(s.pool);
  s.threads = threads;
}

namespace detail {

void run(int64_t count, int64_t grain, Body body, const void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  if (Pool::inside() || count <= grain || num_threads() == 1) return body(context, 0, count);
  current_pool(state())->run(count, grain, body, context);
}

void run_in_order(int64_t count, Body body, const void* context) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(count, num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) body(context, i, i + 1);
  });
}

}  // namespace detail

void Progress::reach(int64_t step) { __atomic_store_n(&step_, step, __ATOMIC_RELEASE); }
void Progress::wait_for(int64_t step) const {
  while (__atomic_load_n(&step_, __ATOMIC_ACQUIRE) < step) std::this_thread::yield();
}

}  // namespace afnext::cpu
