// How emulated launches run: set by tests.
#pragma once

#include "cuda/arch/call.h"
#include "emulation/launch.h"

namespace afnext::cuda {

struct EmulatedLaunches {
  emulation::Options options;
  emulation::Stream stream;  // of all launches
  Device device{90, 4, 227 << 10, 50 << 20};
  emulation::Counters counters;  // of all launches so far
  uint64_t launches = 0;
  bool capturing = false;  // calls believe that their stream is captured; what they launch runs
};
EmulatedLaunches& emulated_launches();

}  // namespace afnext::cuda
