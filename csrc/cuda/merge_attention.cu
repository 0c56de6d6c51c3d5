// Merge of attention over two sets of keys: two rows in, their weighted sum out.
//
// Bytes: 6 D + 12 a row in 16 bits, arithmetic is free beside them. A group of lanes holds a row of
// D elements, 16 bytes a lane (16 lanes for D = 128 in 16 bits); each group takes kRows tokens of
// one head, all loaded before the first is used: 64 bytes in flight a thread. Groups of a block are
// neighbouring tokens, since lse is [H, T]: its reads and writes fill sectors of 32 bytes, and rows
// of out, 256 bytes at D = 128, fill theirs wherever they lie. Neighbouring blocks are the other
// heads of the same tokens.
#include "cuda/arch/call.h"
#include "cuda/dispatch.h"
#include "cuda/merge_attention.h"
#include "cuda/vector.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 2;

struct Params {
  const void *out_a, *out_b;
  const float *lse_a, *lse_b;
  void* out;
  float* lse;
  int64_t tokens;
  unsigned heads;
  int dim;
  int log_lanes;  // of the lanes that hold a row
};

struct Weights {
  float a, b, lse;
};

// Relative to the larger one nothing overflows; of two empty sets the union is empty.
AFNEXT_DEVICE Weights weigh(float lse_a, float lse_b) {
  const float peak = fmaxf(lse_a, lse_b);
  const float safe = peak == -INFINITY ? 0.0f : peak;
  const float a = expf(lse_a - safe), b = expf(lse_b - safe), both = a + b;
  const float share = both == 0.0f ? 0.0f : 1.0f / both;
  return {a * share, b * share, peak + logf(both)};
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) merge_attention_kernel(const Params p) {
  const int lanes = 1 << p.log_lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int group = static_cast<int>(threadIdx.x) >> p.log_lanes;
  const int groups = kThreads >> p.log_lanes;
  const int64_t head = blockIdx.x % p.heads;
  const int64_t first = static_cast<int64_t>(blockIdx.x / p.heads) * groups * kRows + group;
  int64_t from[kRows];
  Weights weights[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t token = first + r * groups;
    from[r] = (token * p.heads + head) * p.dim;
    if (token < p.tokens) {
      const int64_t at = head * p.tokens + token;
      weights[r] = weigh(p.lse_a[at], p.lse_b[at]);
      if (lane == 0) p.lse[at] = weights[r].lse;
    }
  }
#pragma unroll 1
  for (int column = lane * kVector; column < p.dim; column += lanes * kVector) {
    Vector<T, kVector> a[kRows], b[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r * groups < p.tokens) {
        a[r] = load<kVector>(static_cast<const T*>(p.out_a) + from[r] + column);
        b[r] = load<kVector>(static_cast<const T*>(p.out_b) + from[r] + column);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r * groups < p.tokens) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          a[r].at[i] = arch::rounded<T>(weights[r].a * arch::to_float(a[r].at[i]) +
                                        weights[r].b * arch::to_float(b[r].at[i]));
        }
        store(static_cast<T*>(p.out) + from[r] + column, a[r]);
      }
    }
  }
}

template <typename T, int kVector>
void run(const Call& call, Params p) {
  const int vectors = (p.dim + kVector - 1) / kVector;
  while (p.log_lanes < 5 && 1 << p.log_lanes < vectors) ++p.log_lanes;
  const int64_t block = (kThreads >> p.log_lanes) * kRows;
  const int64_t blocks = (p.tokens + block - 1) / block * p.heads;
  call.launch<merge_attention_kernel<T, kVector>>(dim3(static_cast<unsigned>(blocks)),
                                                  dim3(kThreads), 0, p);
}

}  // namespace

void merge_attention(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                     const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                     Stream stream) {
  const Call call("merge_attention", out_a, stream);
  const Params p{out_a.data,
                 out_b.data,
                 lse_a.as<const float>(),
                 lse_b.as<const float>(),
                 out.data,
                 lse.as<float>(),
                 out_a.shape[0],
                 static_cast<unsigned>(out_a.shape[1]),
                 static_cast<int>(out_a.shape[2]),
                 0};
  const bool wide = rows_align(out_a) && rows_align(out_b) && rows_align(out);
  with_dtype(out_a.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      run<T, kWidest<T>>(call, p);
    } else {
      run<T, 1>(call, p);
    }
  });
}

}  // namespace afnext::cuda
