// Rotation of pairs of channels: a read and a write of x, phases once a token.
//
// Bytes: 4 D a head in 16 bits. A block takes one token: its R / 2 sines and cosines are computed
// once, some 40 instructions each, and serve all heads from shared memory (512 bytes at R = 128);
// computing them a head would cost more than the move itself. A thread then turns kVector pairs of
// one head at a time, two vectors of 16 bytes from the two halves of the channels or 32 bytes of
// neighbours, those of kHeads heads loaded before the first is turned: 64 bytes in flight a thread.
// 28 heads of 128 are 224 such pairs of vectors, 112 of 128 threads' work; 62 registers leave 8
// blocks an SM, 56 KB in flight, where 3.35 TB/s at some 700 ns over 132 SMs asks for 18. Channels
// beyond R are copied by the same threads.
#include "cuda/arch/call.h"
#include "cuda/dispatch.h"
#include "cuda/rotate.h"
#include "cuda/rotation.h"
#include "cuda/vector.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHeads = 2;

struct Params {
  const void* x;
  const float *times, *inv_freq, *angles;
  void* out;
  int64_t token_stride, head_stride;  // of x, elements
  int heads, dim, half;
  bool inverse;
};

// cos [half], then sin [half].
AFNEXT_DEVICE void fill_phases(const Params& p, int64_t token, float* phases) {
  for (int i = static_cast<int>(threadIdx.x); i < p.half; i += kThreads) {
    const SinCos turn = p.angles != nullptr ? sincos_of(1.0f, p.angles[token * p.half + i])
                                            : sincos_of(p.times[token], p.inv_freq[i]);
    phases[i] = turn.cos;
    phases[p.half + i] = p.inverse ? -turn.sin : turn.sin;
  }
}

// Turns the pairs (a[i], b[i]), or those of neighbours in a, then in b.
template <bool kInterleaved, typename T, int kVector>
AFNEXT_DEVICE void turn(Vector<T, kVector>* a, Vector<T, kVector>* b, const float* cos,
                        const float* sin) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    T& left = !kInterleaved ? a->at[i] : 2 * i < kVector ? a->at[2 * i] : b->at[2 * i - kVector];
    T& right = !kInterleaved         ? b->at[i]
               : 2 * i + 1 < kVector ? a->at[2 * i + 1]
                                     : b->at[2 * i + 1 - kVector];
    const float x = arch::to_float(left), y = arch::to_float(right);
    left = arch::rounded<T>(x * cos[i] - y * sin[i]);
    right = arch::rounded<T>(y * cos[i] + x * sin[i]);
  }
}

template <bool kInterleaved, typename T, int kVector>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const Params p) {
  const int64_t token = blockIdx.x;
  auto* phases = &arch::shared_memory<float>();
  fill_phases(p, token, phases);
  __syncthreads();
  const auto* x = static_cast<const T*>(p.x) + token * p.token_stride;
  auto* out = static_cast<T*>(p.out) + token * p.heads * p.dim;
  // A head's work: `turns` groups of kVector pairs, then `copies` vectors of what does not turn.
  const int turns = p.half / kVector, copies = (p.dim - 2 * p.half) / kVector;
  const int work = turns + copies;
  const int apart = kInterleaved ? kVector : p.half;  // from a to b
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < (p.heads + kHeads - 1) / kHeads * work;
       i += kThreads) {
    const int group = i / work, part = i - group * work;
    const bool turning = part < turns;
    const int column =
        turning ? part * kVector * (kInterleaved ? 2 : 1) : 2 * p.half + (part - turns) * kVector;
    Vector<T, kVector> a[kHeads], b[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = group * kHeads + h;
      if (head < p.heads) {
        const T* from = x + head * p.head_stride + column;
        a[h] = load<kVector>(from);
        if (turning) b[h] = load<kVector>(from + apart);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = group * kHeads + h;
      if (head < p.heads) {
        T* to = out + head * p.dim + column;
        if (turning) {
          turn<kInterleaved>(&a[h], &b[h], phases + part * kVector,
                             phases + p.half + part * kVector);
          store(to + apart, b[h]);
        }
        store(to, a[h]);
      }
    }
  }
}

template <typename T, int kVector>
void run(const Call& call, int64_t tokens, bool interleaved, const Params& p) {
  const dim3 grid(static_cast<unsigned>(tokens));
  const size_t shared = 2 * p.half * sizeof(float);
  if (interleaved) {
    call.launch<rotate_kernel<true, T, kVector>>(grid, dim3(kThreads), shared, p);
  } else {
    call.launch<rotate_kernel<false, T, kVector>>(grid, dim3(kThreads), shared, p);
  }
}

}  // namespace

void rotate(const TensorView& x, const TensorView* times, const TensorView* inv_freq,
            const TensorView* angles, bool interleaved, bool inverse, const TensorView& out,
            Stream stream) {
  const Call call("rotate", x, stream);
  const int64_t half = angles ? angles->last() : inv_freq->last();
  const Params p{x.data,
                 times ? times->as<const float>() : nullptr,
                 inv_freq ? inv_freq->as<const float>() : nullptr,
                 angles ? angles->as<const float>() : nullptr,
                 out.data,
                 x.stride[0],
                 x.stride[1],
                 static_cast<int>(x.shape[1]),
                 static_cast<int>(x.shape[2]),
                 static_cast<int>(half),
                 inverse};
  with_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (rows_align(x) && rows_align(out) && half % kWidest<T> == 0) {
      run<T, kWidest<T>>(call, x.shape[0], interleaved, p);
    } else {
      run<T, 1>(call, x.shape[0], interleaved, p);
    }
  });
}

}  // namespace afnext::cuda
