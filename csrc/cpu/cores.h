// How many cores this process may use.
#pragma once

#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace afnext::cpu {

// The affinity mask's cores, or fewer where a cgroup's CPU quota allows less; at least 1.
int available_cores();

// The quota in whole cores, rounded up, of the cgroup that `membership` (the text of
// /proc/self/cgroup) names below `root` (/sys/fs/cgroup), or of one that holds it; version 1 and 2.
// 0 where there is none.
int cgroup_cores(const std::string& root, const std::string& membership);

// The core that the calling thread is on, or -1 where the system does not tell.
int current_core();

// Asks for short turns of the core for the calling thread, where the system grants them (Linux from
// 6.12 on): it gets no more time than others, but when it wakes beside a thread that spins, as
// OpenMP's idle ones do, it gets its time at once instead of milliseconds later.
void ask_for_short_turns();

// Keeps a thread off one core, that of the thread that it works for: a guest's scheduler may take
// halted cores for busy ones, and then wakes a helper on the very core of its caller.
class KeptOff {
 public:
  // Leaves `thread` every core that it may use but this one, if there is any; the last one is free
  // again. One caller at a time.
  void move(std::thread& thread, int core);

 private:
#if defined(__linux__)
  int core_ = -1;
  cpu_set_t made_;  // what the thread was left with
#endif
};

}  // namespace afnext::cpu
