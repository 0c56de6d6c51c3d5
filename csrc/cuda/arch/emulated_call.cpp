#include "cuda/arch/emulated_call.h"

#include <cstdlib>
#include <cstring>

#include "afnext/error.h"
#include "cuda/arch/call.h"

namespace afnext::cuda {

// Not within the function: the guard of what is made at its first call is an atomic, which the
// detector's hooks lack.
static EmulatedLaunches the_launches;

EmulatedLaunches& emulated_launches() { return the_launches; }

Call::Call(const char* op, const TensorView& about, Stream stream)
    : op_(op), about_(about), stream_(stream), device_(&emulated_launches().device) {
  check_device();
}

Call::~Call() = default;

void Call::fail(const std::string& what) const {
  throw CudaError(std::string(op_) + ": " + what + " (on " + describe(about_) + ")");
}

void Call::run(const Shape& shape, const std::function<void()>& kernel) const {
  check_shared(shape.shared_bytes);
  EmulatedLaunches& launches = emulated_launches();
  constexpr int kFirstEarly = 90;
  const bool early = shape.early && device_->sm >= kFirstEarly;
  const emulation::Report report =
      emulation::run(launches.options, shape.grid, shape.block, shape.shared_bytes, kernel,
                     {&launches.stream, early});
  launches.counters.add(report.counters);
  ++launches.launches;
  if (report.races.empty()) return;
  std::string text;
  for (const emulation::Race& race : report.races) text += "\n  " + race.text();
  fail(std::to_string(report.races.size()) + " races:" + text);
}

bool Call::captured() const { return emulated_launches().capturing; }

void Call::upload(void* device, const void* host, size_t bytes) const {
  check_uploads();
  emulated_launches().stream.finish();
  std::memcpy(device, host, bytes);
}

void Call::clear(void* device, size_t bytes) const {
  emulated_launches().stream.finish();
  std::memset(device, 0, bytes);
}

Scratch::Scratch(const Call& call, size_t bytes) : call_(call) {
  if (bytes == 0) return;
  data_ = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (data_ == nullptr) call.fail(std::to_string(bytes) + " bytes of scratch: out of memory");
  std::memset(data_, 0xff, bytes);  // NaN: nobody may count on what is in it
  emulated_launches().stream.forget(data_, bytes);
}

Scratch::~Scratch() { std::free(data_); }

}  // namespace afnext::cuda
