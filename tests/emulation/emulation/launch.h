// Running a kernel: emulation::launch(options, kernel, grid, block, shared bytes, arguments...).
#pragma once

#include <functional>

#include "emulation/options.h"
#include "emulation/stream.h"
#include "emulation/vocabulary.h"

namespace emulation {

// Calls `kernel` once a thread. Returns what the race detector saw; throws Error where a launch on
// hardware would hang, fault or be refused.
Report run(const Options& options, dim3 grid, dim3 block, size_t shared_bytes,
           const std::function<void()>& kernel, const Dependency& dependency = {});

template <typename Kernel, typename... Arguments>
Report launch(const Options& options, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes,
              Arguments... arguments) {
  return run(options, grid, block, shared_bytes, [&] { kernel(arguments...); });
}
// The same for a kernel that starts while those before it in `stream` may still run.
template <typename Kernel, typename... Arguments>
Report launch_early(const Options& options, Stream& stream, Kernel kernel, dim3 grid, dim3 block,
                    size_t shared_bytes, Arguments... arguments) {
  return run(options, grid, block, shared_bytes, [&] { kernel(arguments...); }, {&stream, true});
}

}  // namespace emulation
