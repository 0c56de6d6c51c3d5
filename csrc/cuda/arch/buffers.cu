#include <cstring>

#include "cuda/arch/buffers.h"

namespace afnext::cuda {
namespace {

cudaStream_t handle(const Call& call) { return static_cast<cudaStream_t>(call.stream().handle); }

void require(const Call& call, cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  call.fail(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

DeviceMemory::DeviceMemory(const Call& call, size_t bytes) {
  if (bytes > 0) require(call, cudaMalloc(&data_, bytes), "memory of a plan");
}

DeviceMemory::~DeviceMemory() { cudaFree(data_); }

struct UploadBuffer::Staging {
  void* host[2] = {};
  cudaEvent_t sent[2] = {};
  int next = 0;

  ~Staging() {
    for (int i = 0; i < 2; ++i) {
      if (sent[i] != nullptr) cudaEventDestroy(sent[i]);
      cudaFreeHost(host[i]);
    }
  }
};

UploadBuffer::UploadBuffer(const Call& call, size_t bytes)
    : device_(call, bytes), staging_(new Staging) {
  for (int i = 0; i < 2; ++i) {
    require(call, cudaHostAlloc(&staging_->host[i], bytes, cudaHostAllocDefault), "pinned memory");
    require(call, cudaEventCreateWithFlags(&staging_->sent[i], cudaEventDisableTiming), "event");
  }
}

UploadBuffer::~UploadBuffer() = default;

void UploadBuffer::upload(const Call& call, const void* host, size_t bytes) {
  call.check_uploads();  // before waiting, which would end the capture
  Staging& s = *staging_;
  require(call, cudaEventSynchronize(s.sent[s.next]), "upload");
  std::memcpy(s.host[s.next], host, bytes);
  call.upload(device_.as<void>(), s.host[s.next], bytes);
  require(call, cudaEventRecord(s.sent[s.next], handle(call)), "upload");
  s.next ^= 1;
}

ErrorFlag::ErrorFlag(const Call& call) {
  void *host = nullptr, *device = nullptr;
  require(call, cudaHostAlloc(&host, sizeof(int32_t), cudaHostAllocMapped), "pinned memory");
  host_ = static_cast<int32_t*>(host);
  *host_ = 0;
  require(call, cudaHostGetDevicePointer(&device, host, 0), "pinned memory");
  device_ = static_cast<int32_t*>(device);
}

ErrorFlag::~ErrorFlag() { cudaFreeHost(host_); }

int32_t ErrorFlag::take() {
  volatile int32_t* word = host_;
  const int32_t value = *word;
  if (value != 0) *word = 0;
  return value;
}

void wait(const Call& call) { require(call, cudaStreamSynchronize(handle(call)), "wait"); }

}  // namespace afnext::cuda
