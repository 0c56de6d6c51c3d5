// One pool of threads for every CPU kernel.
#pragma once

#include <cstdint>

namespace afnext::cpu {

// Threads that share the work, the caller included: AFNEXT_NUM_THREADS, else the cores this process
// may use (available_cores).
int num_threads();
// Calls that are running finish on the threads that they have.
void set_num_threads(int threads);

namespace detail {
using Body = void (*)(const void* context, int64_t begin, int64_t end);
void run(int64_t count, int64_t grain, Body body, const void* context);
void run_in_order(int64_t count, Body body, const void* context);
}  // namespace detail

// Calls body(begin, end) over disjoint pieces of [0, count), of at least `grain` items each where
// count allows, on the pool: about four pieces a thread, taken as threads become free. Returns when
// all are done. Safe from several threads at once: they share the pool. Inside another parallel_for
// the caller does all the work itself. When a body throws, pieces that nobody has begun are
// dropped, and the first exception reaches the caller.
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& body) {
  detail::run(
      count, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      &body);
}

// Calls body(i) for each i of [0, count). They begin in that order, so that an item may wait for an
// earlier one: it is done, or another thread is at it. A body must not throw.
template <typename F>
void parallel_in_order(int64_t count, const F& body) {
  detail::run_in_order(
      count,
      [](const void* context, int64_t begin, int64_t) { (*static_cast<const F*>(context))(begin); },
      &body);
}

// How far an item is, for those that wait for it.
class Progress {
 public:
  // What was written before is visible to whoever has waited for this step or an earlier one.
  void reach(int64_t step);
  void wait_for(int64_t step) const;

 private:
  int64_t step_ = 0;
};

}  // namespace afnext::cpu
