#include <cstdlib>
#include <cstring>

#include "cuda/arch/buffers.h"
#include "cuda/arch/emulated_call.h"

namespace afnext::cuda {

DeviceMemory::DeviceMemory(const Call& call, size_t bytes) {
  if (bytes == 0) return;
  data_ = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (data_ == nullptr) call.fail("memory of a plan: out of memory");
  std::memset(data_, 0xff, bytes);  // NaN: nobody may count on what is in it
  emulated_launches().stream.forget(data_, bytes);
}

DeviceMemory::~DeviceMemory() { std::free(data_); }

struct UploadBuffer::Staging {};

UploadBuffer::UploadBuffer(const Call& call, size_t bytes) : device_(call, bytes) {}

UploadBuffer::~UploadBuffer() = default;

void UploadBuffer::upload(const Call& call, const void* host, size_t bytes) {
  call.upload(device_.as<void>(), host, bytes);
}

ErrorFlag::ErrorFlag(const Call&) : host_(new int32_t(0)), device_(host_) {}

ErrorFlag::~ErrorFlag() { delete host_; }

int32_t ErrorFlag::take() {
  const int32_t value = *host_;
  *host_ = 0;
  return value;
}

void wait(const Call&) {}

}  // namespace afnext::cuda
