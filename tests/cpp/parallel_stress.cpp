// Drives the thread pool from several threads at once. Each mode prints nothing and exits with 0,
// or says what went wrong and exits with 1. test_parallel.py compiles it, once with the thread
// sanitizer.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

// No kernels are linked here.
afnext::cpu::KernelList afnext::cpu::compiled_kernels() { return {nullptr, 0}; }

using namespace afnext::cpu;
using namespace std::chrono_literals;

namespace {

void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("%s\n", what);
  std::exit(1);
}

// Each index once, whatever count, grain and threads are: plain ints, so that the sanitizer
// sees a piece that two threads run, or a result that the caller reads too early.
void cover(std::mt19937& random, int64_t largest) {
  const int64_t count = random() % largest, grain = 1 + random() % 40;
  std::vector<int> seen(count, 0);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++seen[i];
  });
  for (const int times : seen) expect(times == 1, "an index was not done exactly once");
}

void callers(int rounds) {
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int caller = 0; caller < 10; ++caller) {  // more than the pool has slots
    threads.emplace_back([caller, rounds] {
      std::mt19937 random(caller);
      for (int i = 0; i < rounds; ++i) cover(random, 2000);
    });
  }
  std::thread resizer([&] {
    for (int n = 1; !done; n = n % 5 + 1) {
      set_num_threads(n);
      std::this_thread::sleep_for(1ms);
    }
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  resizer.join();
}

void sleepers(int rounds) {
  // Pauses around the time that a worker looks out before it sleeps: no call may go unheard.
  std::mt19937 random(1);
  set_num_threads(2);
  for (int i = 0; i < rounds; ++i) {
    cover(random, 500);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 100));
  }
}

void nested() {
  set_num_threads(4);
  std::atomic<int> total{0};
  parallel_for(64, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::thread::id outer = std::this_thread::get_id();
      parallel_for(32, 1, [&](int64_t first, int64_t last) {
        expect(std::this_thread::get_id() == outer, "a nested call left its thread");
        total += static_cast<int>(last - first);
      });
    }
  });
  expect(total == 64 * 32, "nested calls lost work");
}

void exceptions() {
  set_num_threads(4);
  for (int i = 0; i < 200; ++i) {
    bool caught = false;
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t) {
        if (begin >= 50) throw std::runtime_error("thrown");
      });
    } catch (const std::runtime_error& error) {
      caught = std::string(error.what()) == "thrown";
    }
    expect(caught, "the exception did not reach the caller");
    std::mt19937 random(i);
    cover(random, 300);  // and the pool goes on
  }
}

#if defined(__linux__)
// The cores that the pool's one worker may use, as it finds them while it helps; `then` runs there.
template <typename F>
cpu_set_t cores_of_worker(const F& then) {
  const std::thread::id caller = std::this_thread::get_id();
  cpu_set_t found;
  for (std::atomic<bool> helped{false}; !helped;) {
    parallel_for(8, 1, [&](int64_t, int64_t) {
      std::this_thread::sleep_for(1ms);  // the worker gets its share
      if (std::this_thread::get_id() == caller || helped.exchange(true)) return;
      sched_getaffinity(0, sizeof(found), &found);
      then();
    });
  }
  return found;
}

// Wherever the caller goes, its worker keeps off that core and may use all others, unless somebody
// else has chosen its cores.
void cores() {
  cpu_set_t all, one;
  sched_getaffinity(0, sizeof(all), &all);
  if (CPU_COUNT(&all) < 2) return;
  set_num_threads(2);
  cores_of_worker([] {});
  const auto move_to = [&](int core) {
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    expect(sched_setaffinity(0, sizeof(one), &one) == 0, "the caller cannot be moved");
  };
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &all)) continue;
    move_to(core);
    cpu_set_t expected = all;
    CPU_CLR(core, &expected);
    const cpu_set_t found = cores_of_worker([] {});
    expect(CPU_EQUAL(&found, &expected),
           "the worker may use other cores than all but its caller's");
  }
  cores_of_worker([&] { sched_setaffinity(0, sizeof(one), &one); });  // the caller's core alone
  const cpu_set_t left = cores_of_worker([] {});
  expect(CPU_EQUAL(&left, &one), "a worker with one core to use was moved");
}
#else
void cores() {}
#endif

// Two callers at once, who both have help; whether it took less time than without. Sleeping bodies
// need no cores: who takes part is the pool's decision alone.
bool shared_out() {
  std::atomic<int> at_work{0}, most{0};
  std::atomic<bool> go{false};
  std::set<std::thread::id> helped[2];
  std::mutex mutex;
  std::thread calls[2];
  for (int caller = 0; caller < 2; ++caller) {
    calls[caller] = std::thread([&, caller] {
      while (!go) std::this_thread::yield();
      for (int i = 0; i < 20; ++i) {
        parallel_for(16, 1, [&](int64_t, int64_t) {
          const int now = ++at_work;
          for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
          }
          std::this_thread::sleep_for(1ms);
          --at_work;
          const std::lock_guard lock(mutex);
          helped[caller].insert(std::this_thread::get_id());
        });
      }
    });
  }
  const auto start = std::chrono::steady_clock::now();
  go = true;
  for (std::thread& call : calls) call.join();
  const auto took = std::chrono::steady_clock::now() - start;
  // The second caller comes while all four are at work for the first: one leaves after its piece.
  expect(most <= 5, "more threads at work than were set");
  for (const auto& ids : helped) expect(ids.size() >= 2, "a caller was left without help");
  // 2 * 20 * 16 ms of sleep by 4 threads: 160 ms; two callers each alone would take 320 ms.
  return took < 280ms;
}

void fairness() {
  set_num_threads(4);
  bool gained = false;  // a machine that is busy wakes threads late
  for (int round = 0; round < 20 && !gained; ++round) gained = shared_out();
  expect(gained, "two callers at once gain nothing from the pool");
}

void after_fork() {
  set_num_threads(3);
  std::mt19937 random(0);
  cover(random, 1000);
  const pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 100; ++i) cover(random, 1000);
    _exit(num_threads() == 3 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the pool does not work after a fork");
  cover(random, 1000);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "callers") callers(1000);
  if (mode == "sleepers") sleepers(5000);
  if (mode == "nested") nested();
  if (mode == "exceptions") exceptions();
  if (mode == "cores") cores();
  if (mode == "fairness") fairness();
  if (mode == "fork") after_fork();
  if (mode == "cgroup") {  // ROOT MEMBERSHIP: prints the quota in cores
    std::ifstream file(argv[3]);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    std::printf("%d\n", cgroup_cores(argv[2], text));
  }
}
