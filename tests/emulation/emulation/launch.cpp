#include "emulation/launch.h"

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "emulation/block.h"

namespace emulation {

void Counters::add(const Counters& other) {
  switches += other.switches, barriers += other.barriers, collectives += other.collectives;
  shared_accesses += other.shared_accesses, matrix_loads += other.matrix_loads;
  bank_conflicts += other.bank_conflicts, matrix_products += other.matrix_products;
  warpgroup_products += other.warpgroup_products, async_copies += other.async_copies;
  tensor_copies += other.tensor_copies;
}

Report run(const Options& options, dim3 grid, dim3 shape, size_t shared_bytes,
           const std::function<void()>& kernel, const Dependency& dependency) {
  if (dependency.stream != nullptr && !dependency.early) dependency.stream->finish();
  Report total;
  Lines written;
  std::mutex lock;
  std::exception_ptr error;
  std::atomic<unsigned> taken{0};
  const auto work = [&] {
    Report report;
    Lines mine;
    try {
      const auto block = std::make_unique<Block>(options, &report, dependency, &mine);
      for (unsigned i; (i = taken++) < grid.size();) {
        block->run(grid, shape, {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)},
                   shared_bytes, kernel);
      }
    } catch (...) {
      const std::scoped_lock held(lock);
      if (!error) error = std::current_exception();
      taken = grid.size();
    }
    const std::scoped_lock held(lock);
    written.add(mine);
    total.counters.add(report.counters);
    total.races.insert(total.races.end(), report.races.begin(), report.races.end());
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < options.os_threads; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  if (dependency.stream != nullptr) dependency.stream->unfinished.add(written);
  if (error) std::rethrow_exception(error);
  return total;
}

}  // namespace emulation
