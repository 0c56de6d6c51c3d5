// Rotation of pairs of channels: a read and a write of x, phases once a token.
//
// Bytes: 4 D a head in 16 bits. A block takes one token, or as many as have kItems items for each
// thread: kVector pairs of a head, two vectors of 16 bytes from the two halves of the channels or
// 32 bytes of neighbours. They are requested first, 64 bytes in flight a thread; meanwhile the R /
// 2 sines and cosines of each token are computed, some 40 instructions each, and serve all its
// heads from shared memory (512 bytes at R = 128); computing them a head would cost more than the
// move itself. 28 heads of 128 are 224 items, of 4 heads 8 tokens are 256. At most 54 registers: 9
// blocks or more an SM, 72 KB in flight, where an H200's 4.3 TB/s at some 800 ns over 132 SMs ask
// for 26. Channels beyond R are copied by the same threads.
//
// On an H200, bf16, 8,192 tokens of 28 heads of 128: 35.1 us, 78 % of a copy's bandwidth.
#include <algorithm>

#include "cuda/arch/call.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/dispatch.h"
#include "cuda/rotate.h"
#include "cuda/rotation.h"
#include "cuda/vector.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kItems = 2;

struct Params {
  const void* x;
  const float *times, *inv_freq, *angles;
  void* out;
  int64_t token_stride, head_stride;  // of x, elements
  int64_t tokens;
  int heads, dim, half;
  int block_tokens;
  bool inverse;
};

// Of a block's tokens: cos [half], then sin [half].
AFNEXT_DEVICE void fill_phases(const Params& p, int64_t first, int tokens, float* phases) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < tokens * p.half; i += kThreads) {
    const int token = i / p.half, pair = i - token * p.half;
    const SinCos turn = p.angles != nullptr
                            ? sincos_of(1.0f, p.angles[(first + token) * p.half + pair])
                            : sincos_of(p.times[first + token], p.inv_freq[pair]);
    float* cos = phases + 2 * token * p.half + pair;
    cos[0] = turn.cos;
    cos[p.half] = p.inverse ? -turn.sin : turn.sin;
  }
}

// Turns the pairs (a[i], b[i]), or those of neighbours in a, then in b.
template <bool kInterleaved, typename T, int kVector>
AFNEXT_DEVICE void turn_pairs(Vector<T, kVector>* a, Vector<T, kVector>* b, const float* cos,
                              const float* sin) {
  Floats<kVector> u = to_floats(*a), v = to_floats(*b);
  const Vector<float, kVector> c = load<kVector>(cos), d = load<kVector>(sin);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    float& left = !kInterleaved ? u.at[i] : 2 * i < kVector ? u.at[2 * i] : v.at[2 * i - kVector];
    float& right = !kInterleaved         ? v.at[i]
                   : 2 * i + 1 < kVector ? u.at[2 * i + 1]
                                         : v.at[2 * i + 1 - kVector];
    turn({d.at[i], c.at[i]}, &left, &right);
  }
  *a = rounded<T>(u), *b = rounded<T>(v);
}

template <bool kInterleaved, typename T, int kVector>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const Params p) {
  const int64_t first = int64_t{blockIdx.x} * p.block_tokens;
  const int tokens =
      static_cast<int>(p.tokens - first < p.block_tokens ? p.tokens - first : p.block_tokens);
  auto* phases = &arch::shared_memory<float>();
  // A head's items: `turns` groups of kVector pairs, then vectors of what does not turn.
  const int turns = p.half / kVector;
  const unsigned head_items = turns + (p.dim - 2 * p.half) / kVector;
  const unsigned items = tokens * p.heads * head_items;
  const int apart = kInterleaved ? kVector : p.half;  // from a to b
  struct Item {
    int token, head, part, column;
  };
  Item item[kItems];
  Vector<T, kVector> a[kItems], b[kItems];
  // No branches: past the end the last item is read again, and what does not turn is read twice.
  const auto read = [&](unsigned begin) {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const unsigned i = begin + k * kThreads < items ? begin + k * kThreads : items - 1,
                     row = i / head_items;
      item[k].token = static_cast<int>(row / p.heads);
      item[k].head = static_cast<int>(row) - item[k].token * p.heads;
      item[k].part = static_cast<int>(i - row * head_items);
      item[k].column = item[k].part < turns ? item[k].part * kVector * (kInterleaved ? 2 : 1)
                                            : 2 * p.half + (item[k].part - turns) * kVector;
      const T* from = static_cast<const T*>(p.x) + (first + item[k].token) * p.token_stride +
                      item[k].head * p.head_stride + item[k].column;
      a[k] = load<kVector>(from);
      b[k] = load<kVector>(from + (item[k].part < turns ? apart : 0));
    }
  };
  const auto write = [&](unsigned begin) {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (begin + k * kThreads >= items) continue;
      T* to = static_cast<T*>(p.out) + ((first + item[k].token) * p.heads + item[k].head) * p.dim +
              item[k].column;
      if (item[k].part < turns) {
        const float* cos = phases + 2 * item[k].token * p.half + item[k].part * kVector;
        turn_pairs<kInterleaved>(&a[k], &b[k], cos, cos + p.half);
        store(to + apart, b[k]);
      }
      store(to, a[k]);
    }
  };
  arch::griddepcontrol_launch_dependents();
  arch::griddepcontrol_wait();
  unsigned begin = threadIdx.x;
  read(begin);  // on their way while the phases are made
  fill_phases(p, first, tokens, phases);
  __syncthreads();
#pragma unroll 1
  while (true) {
    write(begin);
    begin += kItems * kThreads;
    if (begin >= items) break;
    read(begin);
  }
}

template <typename T, int kVector>
void run(const Call& call, bool interleaved, Params p) {
  const int items = p.heads * (p.dim - p.half) / kVector;  // of a token
  p.block_tokens = std::max(1, kThreads * kItems / std::max(1, items));
  const dim3 grid(static_cast<unsigned>((p.tokens + p.block_tokens - 1) / p.block_tokens));
  const size_t shared = 2 * p.block_tokens * p.half * sizeof(float);
  if (interleaved) {
    call.launch_early<rotate_kernel<true, T, kVector>>(grid, dim3(kThreads), shared, p);
  } else {
    call.launch_early<rotate_kernel<false, T, kVector>>(grid, dim3(kThreads), shared, p);
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
                 x.shape[0],
                 static_cast<int>(x.shape[1]),
                 static_cast<int>(x.shape[2]),
                 static_cast<int>(half),
                 1,
                 inverse};
  with_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (rows_align(x) && rows_align(out) && half % kWidest<T> == 0) {
      run<T, kWidest<T>>(call, interleaved, p);
    } else {
      run<T, 1>(call, interleaved, p);
    }
  });
}

}  // namespace afnext::cuda
