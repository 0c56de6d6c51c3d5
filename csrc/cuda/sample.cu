// Sampling: a block a row, some five passes over its logits, no sort.
//
// Tokens are ordered by a key, the distance to the largest logit in fixed point, and weighed by a
// mass, exp(-distance) in fixed point: sums of integers are the same in any order, so that a draw
// depends on the row and its uniform alone. Every question (where do top_k tokens end, where is
// top_p of the mass reached, where does the uniform fall) is the same search: a histogram of counts
// and masses over 2,048 bins of the key's first 11 bits, a scan, and where the bin found holds more
// than one token the next 11 and the last 10 bits inside it. The first histogram serves all three.
// Distances 1/64 apart fall into different bins, so lanes of a warp rarely add to the same one (the
// bits of floats would put most of a row into a handful).
//
// Bytes: 2 V a row from memory (4 V in float32), the other passes from the L2, where 151,672 logits
// (300 KB) stay. A pass costs one SM some 10 instructions a logit, 7 us of 1.75 GHz at V = 151,672;
// more blocks a row would have to wait for one another. Shared memory: 49 KB. 512 threads, so that
// each may hold 4 vectors of 16 bytes in flight and what they unfold to: 60 to 96 registers,
// which is one block a multiprocessor, or two.
#include <cmath>

#include "cuda/arch/call.h"
#include "cuda/arch/warp.h"
#include "cuda/dispatch.h"
#include "cuda/sample.h"
#include "cuda/vector.h"
#include "ops/sample_units.h"

namespace afnext::cuda {
namespace {

using namespace sampling;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / arch::kWarp;
constexpr int kBinsEach = kBins / kThreads;

using Mass = unsigned long long;  // as atomicAdd has it

struct Params {
  const void* logits;
  int64_t stride;  // elements
  int width;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p, *uniform;
  int64_t* tokens;
  float* logprobs;
};

struct Weight {
  Mass mass, count;
};
// Tokens whose keys lie in [first, last], and what lies before them.
struct Range {
  unsigned first, last;
  Weight before, inside;
};
struct Histogram {
  Mass mass[kBins];
  unsigned count[kBins];
};
struct Shared {
  Histogram coarse, fine;
  Weight warps[kWarps];
  float largest[kWarps];
  Range found;
};

// Where a logit stands in its row.
struct Scale {
  float largest, by;  // by: 1 / temperature

  // Infinite logits: those at the largest are at no distance.
  AFNEXT_DEVICE float distance(float logit) const {
    return logit == largest ? 0.0f : (largest - logit) * by;
  }
};
AFNEXT_DEVICE unsigned key_of(float distance) {
  return static_cast<unsigned>(distance * kKeyUnits);
}
AFNEXT_DEVICE Mass mass_of(float distance) {
  return static_cast<Mass>(expf(-distance) * kMassUnits);
}

// Calls use(logit) for the thread's share of [begin, end) of a row.
template <typename T, int kVector, typename Use>
AFNEXT_DEVICE void for_each_logit(const T* row, int width, const Use& use) {
  constexpr int kTurns = 4;  // loads in flight
  constexpr int kStep = kThreads * kVector;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) * kVector; first < width;
       first += kTurns * kStep) {
    Vector<T, kVector> x[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (first + turn * kStep < width) x[turn] = load<kVector>(row + first + turn * kStep);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (first + turn * kStep < width) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) use(arch::to_float(x[turn].at[i]));
      }
    }
  }
}

// Sums over the threads before this one; `total` is that of all.
AFNEXT_DEVICE Weight sum_before(Weight own, Weight* total) {
  auto& shared = arch::shared_memory<Shared>();
  const unsigned lane = threadIdx.x % arch::kWarp, warp = threadIdx.x / arch::kWarp;
  Weight sum = own;
#pragma unroll
  for (int by = 1; by < arch::kWarp; by *= 2) {
    const Mass mass = __shfl_up_sync(arch::kAllLanes, sum.mass, by);
    const Mass count = __shfl_up_sync(arch::kAllLanes, sum.count, by);
    if (lane >= static_cast<unsigned>(by)) sum = {sum.mass + mass, sum.count + count};
  }
  if (lane == arch::kWarp - 1) shared.warps[warp] = sum;
  __syncthreads();
  Weight before{sum.mass - own.mass, sum.count - own.count};
  *total = {};
#pragma unroll 4
  for (unsigned i = 0; i < kWarps; ++i) {
    const Weight other = shared.warps[i];
    if (i < warp) before = {before.mass + other.mass, before.count + other.count};
    *total = {total->mass + other.mass, total->count + other.count};
  }
  __syncthreads();  // shared.warps may be written again
  return before;
}

AFNEXT_DEVICE void clear(Histogram& histogram) {
#pragma unroll
  for (int i = 0; i < kBinsEach; ++i) {
    histogram.mass[threadIdx.x + i * kThreads] = 0;
    histogram.count[threadIdx.x + i * kThreads] = 0;
  }
}

template <typename T, int kVector>
struct Sampler {
  const T* row;
  int width;
  Scale scale;
  Weight all;

  AFNEXT_DEVICE void find_largest() {
    auto& shared = arch::shared_memory<Shared>();
    float largest = -INFINITY;
    for_each_logit<T, kVector>(row, width, [&](float x) { largest = fmaxf(largest, x); });
    largest = arch::max_lanes(largest);
    if (threadIdx.x % arch::kWarp == 0) shared.largest[threadIdx.x / arch::kWarp] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; ++i) largest = fmaxf(largest, shared.largest[i]);
    scale.largest = largest;
  }

  // Fills `histogram` with the bits [shift, shift + bits) of the keys in `within`.
  AFNEXT_DEVICE void count(Histogram& histogram, int shift, int bits, const Range& within) const {
    clear(histogram);
    __syncthreads();
    for_each_logit<T, kVector>(row, width, [&](float x) {
      const float distance = scale.distance(x);
      if (!(distance < kFarthest)) return;  // nor is NaN
      const unsigned key = key_of(distance);
      if (key < within.first || key > within.last) return;
      const unsigned bin = key >> shift & ((1u << bits) - 1);
      atomicAdd(&histogram.mass[bin], mass_of(distance));
      atomicAdd(&histogram.count[bin], 1u);
    });
    __syncthreads();
  }

  AFNEXT_DEVICE void take_stock() {
    auto& shared = arch::shared_memory<Shared>();
    count(shared.coarse, kFirstShift, kDigitBits, {0, UINT32_MAX, {}, {}});
    Weight own{};
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      own.mass += shared.coarse.mass[threadIdx.x * kBinsEach + i];
      own.count += shared.coarse.count[threadIdx.x * kBinsEach + i];
    }
    sum_before(own, &all);
  }

  // The bin of `histogram`, of keys in `within` by their bits from `shift`, that holds the goal.
  template <bool kCount>
  AFNEXT_DEVICE Range bin_of(const Histogram& histogram, int shift, Mass goal,
                             const Range& within) const {
    auto& shared = arch::shared_memory<Shared>();
    Weight bins[kBinsEach], own{};
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      const unsigned bin = threadIdx.x * kBinsEach + i;
      bins[i] = {histogram.mass[bin], histogram.count[bin]};
      own = {own.mass + bins[i].mass, own.count + bins[i].count};
    }
    Weight total;
    Weight before = sum_before(own, &total);
    before = {before.mass + within.before.mass, before.count + within.before.count};
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      const Weight end{before.mass + bins[i].mass, before.count + bins[i].count};
      const Mass from = kCount ? before.count : before.mass, to = kCount ? end.count : end.mass;
      if (from < goal && goal <= to) {
        const unsigned first = within.first + ((threadIdx.x * kBinsEach + i) << shift);
        shared.found = {first, first + ((1u << shift) - 1), before, bins[i]};
      }
      before = end;
    }
    __syncthreads();
    return shared.found;  // written again only behind the barriers of the next sum_before
  }

  // The tokens of one key, or the one token, where the goal-th token or unit of mass lies.
  template <bool kCount>
  AFNEXT_DEVICE Range find(Mass goal) const {
    auto& shared = arch::shared_memory<Shared>();
    Range range{0, UINT32_MAX, {}, {}};
    range = bin_of<kCount>(shared.coarse, kFirstShift, goal, range);
    int shift = kFirstShift;
#pragma unroll 1
    while (shift > 0 && range.inside.count > 1) {
      const int bits = shift < kDigitBits ? shift : kDigitBits;
      shift -= bits;
      count(shared.fine, shift, bits, range);
      range = bin_of<kCount>(shared.fine, shift, goal, range);
    }
    return range;
  }

  AFNEXT_DEVICE Mass mass_up_to(unsigned last) const {
    Weight own{}, total;
    for_each_logit<T, kVector>(row, width, [&](float x) {
      const float distance = scale.distance(x);
      if (distance < kFarthest && key_of(distance) <= last) own.mass += mass_of(distance);
    });
    sum_before(own, &total);
    return total.mass;
  }

  // Whether a logit is one of those drawn from: of the keys in `range`, or the largest itself.
  AFNEXT_DEVICE bool is_drawn(float x, const Range& range, bool greedy) const {
    if (greedy) return x == scale.largest;
    const float distance = scale.distance(x);
    if (!(distance < kFarthest)) return false;
    const unsigned key = key_of(distance);
    return key >= range.first && key <= range.last;
  }

  // Writes the place-th token of those drawn from, by id. A warp has a stretch of the row, so that
  // counts of the warps before it are all that it need know.
  AFNEXT_DEVICE void write(const Range& range, bool greedy, Mass place, int64_t* token,
                           float* logprob) const {
    constexpr int kStep = arch::kWarp * kVector;
    const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
    const int warp = static_cast<int>(threadIdx.x) / arch::kWarp;
    const int stretch = (width + kWarps * kStep - 1) / (kWarps * kStep) * kStep;
    const int begin = warp * stretch, end = begin + stretch < width ? begin + stretch : width;
    Weight own{}, total;
#pragma unroll 4
    for (int first = begin + lane * kVector; first < end; first += kStep) {
      own.count += drawn_at(first, range, greedy);
    }
    const Weight before_me = sum_before(own, &total);
    // That of the warp's first lane, and of its last with its own.
    Mass before = __shfl_sync(arch::kAllLanes, before_me.count, 0);
    const Mass after = __shfl_sync(arch::kAllLanes, before_me.count + own.count, arch::kWarp - 1);
    if (place < before || place >= after) return;
#pragma unroll 1
    for (int first = begin; first < end; first += kStep) {
      const int mine = first + lane * kVector;
      const unsigned drawn = mine < end ? drawn_at(mine, range, greedy) : 0;
      unsigned sum = drawn;
#pragma unroll
      for (int by = 1; by < arch::kWarp; by *= 2) {
        const unsigned other = __shfl_up_sync(arch::kAllLanes, sum, by);
        if (lane >= by) sum += other;
      }
      Mass at = before + sum - drawn;
      if (place >= at && place < at + drawn) {
        const auto x = load<kVector>(row + mine);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const float logit = arch::to_float(x.at[i]);
          if (!is_drawn(logit, range, greedy)) continue;
          if (at++ == place) {
            *token = mine + i;
            *logprob = -scale.distance(logit) - logf(static_cast<float>(all.mass) / kMassUnits);
          }
        }
      }
      before += __shfl_sync(arch::kAllLanes, sum, arch::kWarp - 1);
    }
  }
  AFNEXT_DEVICE unsigned drawn_at(int first, const Range& range, bool greedy) const {
    const auto x = load<kVector>(row + first);
    unsigned drawn = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      drawn += is_drawn(arch::to_float(x.at[i]), range, greedy) ? 1 : 0;
    }
    return drawn;
  }
};

AFNEXT_DEVICE Mass end_of(const Range& range) { return range.before.mass + range.inside.mass; }

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const Params p) {
  const int64_t r = blockIdx.x;
  const float temperature = p.temperature[r];
  const bool greedy = !(temperature > 0.0f);
  Sampler<T, kVector> sampler{static_cast<const T*>(p.logits) + r * p.stride,
                              p.width,
                              {0.0f, greedy ? 1.0f : 1.0f / temperature},
                              {}};
  sampler.find_largest();
  sampler.take_stock();
  if (sampler.all.count == 0) {  // a row of NaN
    if (threadIdx.x == 0) p.tokens[r] = 0, p.logprobs[r] = NAN;
    return;
  }
  Range drawn{};
  Mass place = 0;
  if (!greedy) {
    Mass total = sampler.all.mass;
    unsigned last = UINT32_MAX;  // key that stays
    const int top_k = p.top_k[r];
    if (top_k > 0 && static_cast<Mass>(top_k) < sampler.all.count) {
      const Range range = sampler.template find<true>(static_cast<Mass>(top_k));
      total = end_of(range), last = range.last;
    }
    const float top_p = p.top_p[r];
    if (top_p < 1.0f) {
      const double goal = ceil(static_cast<double>(top_p) * static_cast<double>(total));
      const Range range = sampler.template find<false>(static_cast<Mass>(fmax(goal, 1.0)));
      total = end_of(range), last = range.last;
    }
    const float min_p = p.min_p[r];
    if (min_p > 0.0f) {
      const unsigned key = key_of(fminf(fmaxf(-logf(min_p), 0.0f), kFarthest));
      last = key < last ? key : last;
      total = sampler.mass_up_to(last);
    }
    const float uniform = fminf(fmaxf(p.uniform[r], 0.0f), 1.0f);
    const auto target = static_cast<Mass>(uniform * static_cast<double>(total));
    const Mass goal = (target < total ? target : total - 1) + 1;
    drawn = sampler.template find<false>(goal);
    // Equals share their mass alike.
    const auto share = static_cast<Mass>(static_cast<double>(goal - 1 - drawn.before.mass) /
                                         static_cast<double>(drawn.inside.mass) *
                                         static_cast<double>(drawn.inside.count));
    place = share < drawn.inside.count ? share : drawn.inside.count - 1;
  }
  sampler.write(drawn, greedy, place, p.tokens + r, p.logprobs + r);
}

}  // namespace

void sample(const TensorView& logits, const TensorView& temperature, const TensorView& top_k,
            const TensorView& top_p, const TensorView& min_p, const TensorView& uniform,
            const TensorView& tokens, const TensorView& logprobs, Stream stream) {
  const Call call("sample", logits, stream);
  const Params p{logits.data,
                 logits.row_stride(),
                 static_cast<int>(logits.last()),
                 temperature.as<const float>(),
                 top_k.as<const int32_t>(),
                 top_p.as<const float>(),
                 min_p.as<const float>(),
                 uniform.as<const float>(),
                 tokens.as<int64_t>(),
                 logprobs.as<float>()};
  const dim3 grid(static_cast<unsigned>(logits.shape[0])), block(kThreads);
  with_dtype(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (rows_align(logits)) {
      call.launch<sample_kernel<T, kWidest<T>>>(grid, block, sizeof(Shared), p);
    } else {
      call.launch<sample_kernel<T, 1>>(grid, block, sizeof(Shared), p);
    }
  });
}

}  // namespace afnext::cuda
