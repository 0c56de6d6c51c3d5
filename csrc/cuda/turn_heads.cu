// Heads that are only turned are rotate's (cuda/rotate.cu). The kernel here also converts, pads and
// takes what no vector fits: a block a token, an element an access, each phase once for all heads.
// Bytes: a read and a write of each element, of 2 or 4 bytes, so that it is far from a copy's
// speed: it is for what no model has. 28 registers, 1 KB of shared memory for phases: 8 blocks of
// 256 threads a multiprocessor, all that its threads allow.
#include "cuda/dispatch.h"
#include "cuda/rotate.h"
#include "cuda/rotation.h"
#include "cuda/turn_heads.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 256, kMaxHalf = 128;

struct Params {
  Heads from;
  void* to;
  int heads, dim, width;
  Turn turn;
};

struct Phases {
  float sin[kMaxHalf], cos[kMaxHalf];
};

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads) turn_heads_kernel(const Params p) {
  auto& phases = arch::shared_memory<Phases>();
  const auto token = static_cast<int64_t>(blockIdx.x);
  const int half = p.turn.inv_freq != nullptr ? p.turn.half : 0;
  for (int i = static_cast<int>(threadIdx.x); i < half; i += kThreads) {
    const SinCos phase = sincos_of(p.turn.times[token], p.turn.inv_freq[i]);
    phases.sin[i] = phase.sin;
    phases.cos[i] = phase.cos;
  }
  __syncthreads();
  To* to = static_cast<To*>(p.to) + token * p.heads * p.width;
  const int pairs = (p.width + 1) / 2;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * pairs; i += kThreads) {
    const int head = i / pairs, pair = i % pairs;
    const RotatedPair at(pair, half, p.turn.interleaved);
    const From* from = static_cast<const From*>(p.from.data) + p.from.at(token, head);
    float x = at.first < p.dim ? arch::to_float(from[at.first]) : 0.0f;
    float y = at.second < p.dim ? arch::to_float(from[at.second]) : 0.0f;
    if (pair < half) turn({phases.sin[pair], phases.cos[pair]}, &x, &y);
    To* row = to + head * p.width;
    row[at.first] = arch::rounded<To>(x);
    if (at.second < p.width) row[at.second] = arch::rounded<To>(y);
  }
}

constexpr int64_t kUnitBytes = 16;

int64_t width_of(const TensorView& t, DType as) {
  const int64_t unit = as == DType::f32 ? 1 : kUnitBytes / dtype_size(as);
  return (t.shape[2] + unit - 1) / unit * unit;
}

size_t bytes_of_copy(const TensorView& t, DType as, const Turn& turn) {
  const bool as_it_is =
      turn.inv_freq == nullptr && t.dtype == as && (as == DType::f32 || in_units(t));
  return as_it_is ? 0 : t.shape[0] * t.shape[1] * width_of(t, as) * dtype_size(as);
}

// float32 values on the device of `like`.
TensorView vector_of(const float* values, int64_t count, const TensorView& like) {
  TensorView v = like;
  v.data = const_cast<float*>(values), v.dtype = DType::f32;
  v.ndim = 1, v.shape[0] = count, v.stride[0] = 1;
  return v;
}

}  // namespace

bool in_units(const TensorView& t) {
  const int64_t size = dtype_size(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % kUnitBytes == 0 &&
         t.shape[2] * size % kUnitBytes == 0 && t.stride[0] * size % kUnitBytes == 0 &&
         t.stride[1] * size % kUnitBytes == 0;
}

ReadableHeads::ReadableHeads(const Call& call, const TensorView& t, DType as, const Turn& turn)
    : memory_(call, bytes_of_copy(t, as, turn)), heads_(heads_of(t)) {
  if (memory_.as<void>() == nullptr) return;
  const int64_t width = width_of(t, as);
  heads_ = {memory_.as<void>(), t.shape[1] * width, width};
  if (t.dtype == as && t.shape[2] == width && turn.inv_freq != nullptr) {
    const TensorView times = vector_of(turn.times, t.shape[0], t);
    const TensorView inv_freq = vector_of(turn.inv_freq, turn.half, t);
    TensorView to = t;
    to.data = memory_.as<void>(), to.stride[0] = t.shape[1] * width, to.stride[1] = width;
    rotate(t, &times, &inv_freq, nullptr, turn.interleaved, false, to, call.stream());
    return;
  }
  const Params p{heads_of(t),
                 memory_.as<void>(),
                 static_cast<int>(t.shape[1]),
                 static_cast<int>(t.shape[2]),
                 static_cast<int>(width),
                 turn};
  const dim3 grid(static_cast<unsigned>(t.shape[0]));
  with_dtype(as, [&](auto zero) {
    using To = decltype(zero);
    if (t.dtype == as) {
      call.launch<turn_heads_kernel<To, To>>(grid, kThreads, sizeof(Phases), p);
    } else {
      call.launch<turn_heads_kernel<float, To>>(grid, kThreads, sizeof(Phases), p);
    }
  });
}

}  // namespace afnext::cuda
