#include "cpu/cores.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace afnext::cpu {
namespace {

// By C's streams: C++'s, in a module compiled by GCC 13, crash once torch 2.11 has been imported.
std::string text_of(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return text;
  char part[4096];
  while (const size_t count = std::fread(part, 1, sizeof(part), file)) text.append(part, count);
  std::fclose(file);
  return text;
}

// "quota period", in microseconds; the quota is "max" or negative where there is none.
int cores_of(const std::string& text) {
  double quota = 0, period = 0;
  if (std::sscanf(text.c_str(), "%lf %lf", &quota, &period) != 2) return 0;
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>((quota + period - 1) / period));
}

int smaller(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// The smallest quota from `group` up to the root.
int walk_up(const std::string& root, std::string group, bool version_2) {
  int cores = 0;
  for (;;) {
    const std::string folder = root + group;
    cores = smaller(cores, cores_of(version_2 ? text_of(folder + "/cpu.max")
                                              : text_of(folder + "/cpu.cfs_quota_us") + " " +
                                                    text_of(folder + "/cpu.cfs_period_us")));
    if (group.empty()) return cores;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

}  // namespace

int cgroup_cores(const std::string& root, const std::string& membership) {
  int cores = 0;
  for (size_t begin = 0, end = 0; begin < membership.size(); begin = end + 1) {
    end = std::min(membership.find('\n', begin), membership.size());
    // "hierarchy:controllers:/group"
    const std::string line = membership.substr(begin, end - begin);
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers(1, ',');
    controllers.append(line, first + 1, second - first - 1).push_back(',');
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    if (controllers == ",,") {
      cores = smaller(cores, walk_up(root, group, true));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      cores = smaller(cores, walk_up(root + "/cpu", group, false));
    }
  }
  return cores;
}

int available_cores() {
  int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = std::max(1, CPU_COUNT(&set));
  const int quota = cgroup_cores("/sys/fs/cgroup", text_of("/proc/self/cgroup"));
  if (quota > 0) cores = std::min(cores, quota);
#endif
  return cores;
}

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

void ask_for_short_turns() {
#if defined(__linux__) && defined(SYS_sched_setattr)
  struct {  // sched_setattr(2); C libraries begin to declare it
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{};
  constexpr uint64_t kTurn = 100'000;  // ns, the least that there is
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = kTurn;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

void KeptOff::move([[maybe_unused]] std::thread& thread, [[maybe_unused]] int core) {
#if defined(__linux__)
  const pthread_t handle = thread.native_handle();
  cpu_set_t set;
  if (core < 0 || core >= CPU_SETSIZE || core == core_) return;
  if (pthread_getaffinity_np(handle, sizeof(set), &set) != 0) return;
  // Unless somebody else has chosen its cores since.
  if (core_ >= 0 && CPU_EQUAL(&set, &made_)) CPU_SET(core_, &set);
  CPU_CLR(core, &set);
  if (CPU_COUNT(&set) == 0 || pthread_setaffinity_np(handle, sizeof(set), &set) != 0) return;
  core_ = core;
  made_ = set;
#endif
}

}  // namespace afnext::cpu
