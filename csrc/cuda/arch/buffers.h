// Memory that outlives a call: what a plan holds, at addresses that captured launches may keep.
#pragma once

#include <memory>

#include "cuda/arch/call.h"

namespace afnext::cuda {

class DeviceMemory {
 public:
  DeviceMemory(const Call& call, size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Device memory that the host fills anew from time to time, in a stream's order.
class UploadBuffer {
 public:
  UploadBuffer(const Call& call, size_t bytes);
  ~UploadBuffer();
  UploadBuffer(const UploadBuffer&) = delete;
  UploadBuffer& operator=(const UploadBuffer&) = delete;

  // `host` may be reused at once. One asynchronous copy out of pinned memory, of which there are
  // two: what is waited for, if anything, is the upload before the last. Refused while the stream
  // is captured: the graph would copy again what is meant for later.
  void upload(const Call& call, const void* host, size_t bytes);
  int32_t* words() const { return device_.as<int32_t>(); }

 private:
  struct Staging;
  DeviceMemory device_;
  std::unique_ptr<Staging> staging_;
};

// A word of the host's memory that kernels write to: reading it costs no copy and no wait.
class ErrorFlag {
 public:
  explicit ErrorFlag(const Call& call);
  ~ErrorFlag();
  ErrorFlag(const ErrorFlag&) = delete;
  ErrorFlag& operator=(const ErrorFlag&) = delete;

  int32_t* device() const { return device_; }
  // What was written so far; 0 again from now on.
  int32_t take();

 private:
  int32_t *host_ = nullptr, *device_ = nullptr;
};

// Until all of the stream's work is done.
void wait(const Call& call);

}  // namespace afnext::cuda
