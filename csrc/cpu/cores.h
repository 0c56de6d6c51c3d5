// How many cores this process may use.
#pragma once

#include <string>

namespace afnext::cpu {

// The affinity mask's cores, or fewer where a cgroup's CPU quota allows less; at least 1.
int available_cores();

// The quota in whole cores, rounded up, of the cgroup that `membership` (the text of
// /proc/self/cgroup) names below `root` (/sys/fs/cgroup), or of one that holds it; version 1 and 2.
// 0 where there is none.
int cgroup_cores(const std::string& root, const std::string& membership);

}  // namespace afnext::cpu
