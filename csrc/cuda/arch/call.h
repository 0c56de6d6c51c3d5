// One op's call on a device: what it launches, the memory that it borrows, what its errors say.
//
//   const Call call("rms_norm", x, stream);
//   call.launch<rms_norm_kernel<bf16>>(grid, block, shared_bytes, params);
//
// or launch_early, for kernels that wait for those before them by themselves
// (cuda/arch/griddepcontrol.h).
//
// A call makes x's device current while it lasts and is a range of its name in a profile. Launches
// are asynchronous; with AFNEXT_SYNC=1 in the environment each is waited for, if no graph captures
// it, and what failed on the device is raised where it was called.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>

#include "afnext/tensor.h"
#include "cuda/arch/platform.h"

namespace afnext::cuda {

// What the driver or a device reports. Python sees a RuntimeError.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr int kOldestSm = 80;  // compute capability that kernels need

struct Device {
  // Compute capability whose kernels run: 80, 90, ... The device's, or a lower one: what kernels
  // were compiled for, as a device runs code of older ones too, or what AFNEXT_CUDA_SM says.
  int sm = 0;
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // that a block can have
  size_t l2_bytes = 0;
};

class Call {
 public:
  // Throws CudaError on a device older than sm_80.
  Call(const char* op, const TensorView& about, Stream stream);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Device& device() const { return *device_; }
  Stream stream() const { return stream_; }

  template <auto kernel, typename... Arguments>
  void launch(dim3 grid, dim3 block, size_t shared_bytes, const Arguments&... arguments) const {
    Launcher<kernel>::launch(*this, {grid, block, shared_bytes, false}, arguments...);
  }
  // As a programmatic dependent launch (sm_90): blocks may start while the kernel before them in
  // the stream, of whichever kind, still runs. Every block calls arch::griddepcontrol_wait before
  // it reads what earlier kernels wrote and before it writes anything. Captured graphs keep it.
  template <auto kernel, typename... Arguments>
  void launch_early(dim3 grid, dim3 block, size_t shared_bytes,
                    const Arguments&... arguments) const {
    Launcher<kernel>::launch(*this, {grid, block, shared_bytes, true}, arguments...);
  }

  // Host memory to the device, in the stream's order; `host` may be reused at once. Refused while
  // the stream is captured: the graph would read `host` each time it runs.
  void upload(void* device, const void* host, size_t bytes) const;
  void clear(void* device, size_t bytes) const;

  [[noreturn]] void fail(const std::string& what) const;

  void check_uploads() const {
    if (!captured()) return;
    fail(
        "is told its sequences by the host, which a graph would not be: call it outside of the "
        "capture (of pages: update a PagedAttentionPlan there, and capture its append and attend)");
  }

 private:
  friend class Scratch;
  struct Shape {
    dim3 grid, block;
    size_t shared_bytes;
    bool early;
  };
  template <auto kernel>
  struct Launcher;
  template <typename... Parameters, void (*kernel)(Parameters...)>
  struct Launcher<kernel> {
    static void launch(const Call& call, const Shape& shape, const Parameters&... parameters) {
      if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
#if defined(__CUDACC__)
      const void* pointers[] = {&parameters..., nullptr};
      call.run(reinterpret_cast<const void*>(kernel), shape, const_cast<void**>(pointers));
#else
      const auto body = [&] { kernel(parameters...); };
      call.run(shape, std::ref(body));  // not copied to where a kernel's memory may have been
#endif
    }
  };
#if defined(__CUDACC__)
  void run(const void* kernel, const Shape& shape, void** parameters) const;
#else
  void run(const Shape& shape, const std::function<void()>& kernel) const;
#endif

  bool captured() const;  // whether the stream's work goes to a graph now
  // Refuses what the device cannot run, in the same words in emulation.
  void check_device() const {
    if (device_->sm >= kOldestSm) return;
    fail("cuda:" + std::to_string(about_.device_index) + " has compute capability " +
         std::to_string(device_->sm / 10) + "." + std::to_string(device_->sm % 10) +
         ", kernels need 8.0");
  }
  void check_shared(size_t bytes) const {
    if (bytes <= device_->shared_bytes) return;
    fail("needs " + std::to_string(bytes) + " bytes of shared memory a block, cuda:" +
         std::to_string(about_.device_index) + " has " + std::to_string(device_->shared_bytes));
  }

  const char* op_;
  const TensorView& about_;
  Stream stream_;
  const Device* device_;
  int device_before_ = -1;
};

// Device memory for as long as a call's launches need it, from a pool of our own: taken and given
// back in the stream's order, without a wait. Not cleared.
class Scratch {
 public:
  Scratch(const Call& call, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  const Call& call_;
  void* data_ = nullptr;
};

}  // namespace afnext::cuda
