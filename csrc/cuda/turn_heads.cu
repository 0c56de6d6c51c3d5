// A block a token: 2 x heads x dim elements pass, each phase is computed once for all heads.
#include "cuda/dispatch.h"
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

template <typename T>
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
  T* to = static_cast<T*>(p.to) + token * p.heads * p.width;
  const int pairs = (p.width + 1) / 2;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * pairs; i += kThreads) {
    const int head = i / pairs, pair = i % pairs;
    const bool turns = pair < half;
    const int a = turns && !p.turn.interleaved ? pair : 2 * pair;
    const int b = turns && !p.turn.interleaved ? pair + half : a + 1;
    const T* from = static_cast<const T*>(p.from.data) + p.from.at(token, head);
    float x = a < p.dim ? arch::to_float(from[a]) : 0.0f;
    float y = b < p.dim ? arch::to_float(from[b]) : 0.0f;
    if (turns) {
      const float turned = x * phases.cos[pair] - y * phases.sin[pair];
      y = y * phases.cos[pair] + x * phases.sin[pair];
      x = turned;
    }
    T* row = to + head * p.width;
    row[a] = arch::rounded<T>(x);
    if (b < p.width) row[b] = arch::rounded<T>(y);
  }
}

}  // namespace

void turn_heads(const Call& call, DType dtype, const Heads& from, int64_t tokens, int heads,
                int dim, int width, const Turn& turn, void* to) {
  const Params p{from, to, heads, dim, width, turn};
  with_dtype(dtype, [&](auto zero) {
    call.launch<turn_heads_kernel<decltype(zero)>>(static_cast<unsigned>(tokens), kThreads,
                                                   sizeof(Phases), p);
  });
}

}  // namespace afnext::cuda
