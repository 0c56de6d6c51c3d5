#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>

#include "afnext/error.h"
#include "cuda/arch/call.h"
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#else
#warning "nvtx3 is missing: calls will be no ranges in a profile"
#endif

namespace afnext::cuda {
namespace {

constexpr int kMaxDevices = 64;

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

bool synchronous() {
  static const bool set = [] {
    const char* value = std::getenv("AFNEXT_SYNC");
    return value != nullptr && std::strcmp(value, "0") != 0 && *value != '\0';
  }();
  return set;
}

// AFNEXT_CUDA_SM, the highest compute capability whose kernels run, as 80.
int highest_sm() {
  const char* value = std::getenv("AFNEXT_CUDA_SM");
  if (value == nullptr || *value == '\0') return std::numeric_limits<int>::max();
  char* end = nullptr;
  const long sm = std::strtol(value, &end, 10);
  if (*end != '\0' || sm < kOldestSm || sm > 999) {
    throw CudaError("AFNEXT_CUDA_SM must be a compute capability of 80 or more, as 80 or 90, got " +
                    std::string(value));
  }
  return static_cast<int>(sm);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess) throw CudaError(std::string("CUDA: ") + cudaGetErrorString(error));
  return value;
}

// Makes a device current as long as it lives.
class Current {
 public:
  explicit Current(int device) {
    cudaGetDevice(&before_);
    cudaSetDevice(device);
  }
  ~Current() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

__global__ void compiled_kernel() {}

// What kernels were compiled for, of that which this device takes: 80 where an sm_90 runs PTX of
// sm_80, which has neither its instructions nor its waits for kernels that started early. All of
// the library is compiled for the same architectures, so that one kernel tells for all.
int compiled_sm(int device) {
  const Current current(device);
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, compiled_kernel);
  if (error == cudaSuccess) return attributes.ptxVersion;
  cudaGetLastError();
  throw CudaError("CUDA: kernels for cuda:" + std::to_string(device) + ": " +
                  cudaGetErrorString(error));
}

// A pool of scratch, for as long as the process lives. What is freed stays in it from one call to
// the next, instead of going back at every wait, but no more than this: beside us others take
// memory, torch for one, and one long call is no reason to hold what it took for ever. The backward
// pass of 8,192 tokens and 28 heads of 128 takes 220 MB. Null where a device has no pools.
cudaMemPool_t make_pool(int device) {
  constexpr uint64_t kKept = 256 << 20;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool = nullptr;
  if (cudaMemPoolCreate(&pool, &properties) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  uint64_t kept = kKept;
  cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
  return pool;
}

std::array<cudaMemPool_t, kMaxDevices> pools;  // of devices that were called

const Device& device_of(int index) {
  static std::array<Device, kMaxDevices> devices;
  static std::array<std::once_flag, kMaxDevices> read;
  if (index < 0 || index >= kMaxDevices)
    throw CudaError("CUDA: no device " + std::to_string(index));
  std::call_once(read[index], [index] {
    Device device;
    device.sm = 10 * attribute(cudaDevAttrComputeCapabilityMajor, index) +
                attribute(cudaDevAttrComputeCapabilityMinor, index);
    if (device.sm >= kOldestSm) {
      device.sm = std::min({device.sm, compiled_sm(index), highest_sm()});
    }
    device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
    device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    device.l2_bytes = attribute(cudaDevAttrL2CacheSize, index);
    pools[index] = make_pool(index);
    devices[index] = device;
  });
  return devices[index];
}

}  // namespace

Call::Call(const char* op, const TensorView& about, Stream stream)
    : op_(op), about_(about), stream_(stream), device_(&device_of(about.device_index)) {
  check_device();
  int current = 0;
  cudaGetDevice(&current);
  if (current != about.device_index) {
    device_before_ = current;
    cudaSetDevice(about.device_index);
  }
#if defined(NVTX_VERSION)
  nvtxRangePushA(op_);
#endif
}

Call::~Call() {
#if defined(NVTX_VERSION)
  nvtxRangePop();
#endif
  if (device_before_ >= 0) cudaSetDevice(device_before_);
}

void Call::fail(const std::string& what) const {
  throw CudaError(std::string(op_) + ": " + what + " (on " + describe(about_) + ")");
}

void Call::run(const void* kernel, const Shape& shape, void** parameters) const {
  constexpr size_t kWithoutAsking = 48 << 10;
  constexpr int kFirstEarly = 90;
  check_shared(shape.shared_bytes);
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > kWithoutAsking) {
    // All that the device has, whatever this launch takes: the limit is the kernel's, and another
    // thread that launches it with more or less memory must find the same.
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(device_->shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid, config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes, config.stream = handle(stream_);
    config.attrs = &early;
    config.numAttrs = shape.early && device_->sm >= kFirstEarly ? 1 : 0;
    error = cudaLaunchKernelExC(&config, kernel, parameters);
  }
  if (error == cudaSuccess && synchronous() && !captured()) {  // a wait would end a capture
    error = cudaStreamSynchronize(handle(stream_));
  }
  if (error == cudaSuccess) return;
  cudaGetLastError();
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess || name == nullptr) name = "a kernel";
  fail(std::string(name) + ": " + cudaGetErrorString(error));
}

bool Call::captured() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(handle(stream_), &status);
  if (error == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();
  fail(std::string("capture: ") + cudaGetErrorString(error));
}

void Call::upload(void* device, const void* host, size_t bytes) const {
  check_uploads();
  const cudaError_t error =
      cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, handle(stream_));
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail(std::string("upload: ") + cudaGetErrorString(error));
}

void Call::clear(void* device, size_t bytes) const {
  const cudaError_t error = cudaMemsetAsync(device, 0, bytes, handle(stream_));
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail(std::string("clear: ") + cudaGetErrorString(error));
}

Scratch::Scratch(const Call& call, size_t bytes) : call_(call) {
  if (bytes == 0) return;
  const cudaStream_t stream = handle(call.stream());
  cudaMemPool_t pool = pools[call.about_.device_index];
  const cudaError_t error = pool != nullptr ? cudaMallocFromPoolAsync(&data_, bytes, pool, stream)
                                            : cudaMallocAsync(&data_, bytes, stream);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  call.fail(std::to_string(bytes) + " bytes of scratch: " + cudaGetErrorString(error));
}

Scratch::~Scratch() {
  if (data_ != nullptr) cudaFreeAsync(data_, handle(call_.stream()));
}

}  // namespace afnext::cuda
