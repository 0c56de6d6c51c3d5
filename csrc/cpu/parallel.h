// One pool of threads for every CPU kernel.
#pragma once

#include <cstdint>

namespace afnext::cpu {

// Threads that share the work, the caller included: AFNEXT_NUM_THREADS, else the cores this process
// may run on.
int num_threads();
void set_num_threads(int threads);

namespace detail {
using Body = void (*)(const void* context, int64_t begin, int64_t end);
void run(int64_t count, int64_t grain, Body body, const void* context);
}  // namespace detail

// Calls body(begin, end) over disjoint pieces of [0, count), of at least `grain` items each, on the
// pool; returns when all are done. Threads take pieces as they become free. Inside another
// parallel_for, or while another Python thread holds the pool, the caller does all the work itself.
// The body must not throw.
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& body) {
  detail::run(
      count, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      &body);
}

}  // namespace afnext::cpu
