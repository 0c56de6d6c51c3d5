// Log-mel spectrograms: what a block does with a tile of 32 frames.
//
// Two real frames are one complex signal a + i b of 400 points: as many instructions a frame as 200
// points and a split, without the split's twiddle factors. 400 = 20 x 20, a thread a column and
// then a row, 20 threads a pair. Transforms of 20 = 4 x 5 need no twiddle factors inside and take
// 40 registers; 16 x 25 takes 50 and leaves 9 threads of 25 idle in its second half, for as much
// arithmetic. Shared memory is free of bank conflicts: lanes of the first half are 8 pairs of
// frames, whose samples begin 4 banks apart, in 4 columns; those of the second half are 16 pairs in
// a row and its mirror image, which part the two frames, 16 lanes apart.
#pragma once

#include "cpu/log_mel_tables.h"
#include "cuda/arch/barrier.h"
#include "cuda/arch/copy.h"
#include "cuda/arch/numbers.h"
#include "cuda/fft.h"

namespace afnext::cuda {

using cpu::kFrameSamples;
using cpu::kHop;
using cpu::kMelBins;
using cpu::kWindowFrames;
using cpu::kWindowSamples;

constexpr int kMargin = kFrameSamples / 2;  // a frame is centred on its first sample
constexpr int kBins = kFrameSamples / 2;    // bin 0 and the Nyquist bin lie in no filter
constexpr int kSide = 20;                   // 400 = 20 x 20
constexpr int kPairs = 16, kTileFrames = 2 * kPairs;
constexpr int kWorkers = kPairs * kSide, kWarps = kWorkers / arch::kWarp;
constexpr int kWorkersBarrier = 1;
constexpr int kTileSamples = (kTileFrames - 1) * kHop + kFrameSamples;
constexpr int kQuads = kMelBins / 4;
constexpr int kMostWeights = 288;  // 243 bins of quads; two have equally many, an even number
constexpr int kLogStride = kMelBins + 4;  // lanes that write a column meet no bank twice
constexpr uint32_t kInfinity = 0x7f800000;
constexpr float kQuietest = -10.0f;

struct alignas(16) Quad {
  float at[4];
};

// Filters 4 g .. 4 g + 3 weigh `bins`, of `first_bin` on, by weights[first_weight] .. .
struct MelQuad {
  int16_t first_bin, first_weight, bins, unused;
};

struct alignas(16) Constants {
  float hann[kSide][kSide];     // [column][n] of sample column + 20 n
  Complex turns[kSide][kSide];  // [column][row]: exp(-2 pi i column row / 400)
  Quad weights[kMostWeights];
  MelQuad quads[kQuads];
};

struct Window {
  int64_t first_sample, first_row;
  int length;      // samples
  int audible;     // frames that reach audio; those past them are silent
  int written;     // rows of out
  int first_tile;  // of the launch
};

// Sample s of a tile lies at place(s): each two frames begin 16 bytes after where they would.
constexpr int kPairSamples = 2 * kHop;
template <typename T>
constexpr int kUnit = 16 / sizeof(T);
template <typename T>
AFNEXT_DEVICE constexpr int place(int s) {
  return s + kUnit<T> * (s / kPairSamples);
}
constexpr int kStagedBytes = kTileSamples * 4 + 16 * (kTileSamples / kPairSamples);

// The stages of a tile, one after the other; samples of the next one come while powers are made.
struct TileShared {
  union {
    Complex spectrum[kSide][kSide][kPairs];  // [row][column][pair, the halves of odd ones swapped]
    struct {
      float power[kBins][kTileFrames];
      float logs[2][kPairs][kLogStride];  // of even and odd frames
      alignas(16) unsigned char samples[kStagedBytes];
    };
  };
  Constants constants;
  uint32_t peaks[kWarps];  // bits of the highest power that a warp saw
};

AFNEXT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
AFNEXT_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

AFNEXT_DEVICE float to_sample(float x) { return x; }
AFNEXT_DEVICE float to_sample(int16_t x) { return static_cast<float>(x) * 0x1p-15f; }

AFNEXT_DEVICE float log10_power(float power) {
  constexpr float log10_of_2 = 0.301029996f;
  return fmaxf(arch::log2_approx_ftz(power) * log10_of_2, kQuietest);
}
// How a window's logarithms are given out, whose highest power has these bits.
struct Ending {
  float floor, one;

  AFNEXT_DEVICE explicit Ending(uint32_t peak)
      : floor(log10_power(arch::bits_float(peak)) - 8.0f),
        one(peak < kInfinity ? 1.0f : arch::bits_float(0x7fc00000)) {}
  AFNEXT_DEVICE Quad operator()(Quad logs) const {
#pragma unroll
    for (float& log : logs.at) log = fmaf(fmaxf(log, floor), 0.25f, one);
    return logs;
  }
};

// Its number, from which every stage computes its places anew: kept, they would take registers.
AFNEXT_DEVICE unsigned this_thread() {
  return static_cast<unsigned>(arch::opaque(static_cast<int>(threadIdx.x)));
}

AFNEXT_DEVICE void wait_for_workers() { arch::bar_sync(kWorkersBarrier, kWorkers); }

AFNEXT_DEVICE void load_constants(const Constants& from, Constants& to) {
  static_assert(sizeof(Constants) % sizeof(Quad) == 0);
  const auto* source = arch::opaque(reinterpret_cast<const Quad*>(&from));
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(Constants) / sizeof(Quad));
       i += static_cast<int>(blockDim.x)) {
    reinterpret_cast<Quad*>(&to)[i] = source[i];
  }
}

// Sample i of a window: zeros past the audio, reflected ends.
template <typename T>
AFNEXT_DEVICE T sample_at(const T* x, int length, int i) {
  const int inside = i < 0 ? -i : i < kWindowSamples ? i : 2 * (kWindowSamples - 1) - i;
  return inside < length ? x[inside] : T{};
}

// Samples of the tile whose first frame is `first`, to be waited for as a group of cp.async.
template <typename T>
AFNEXT_DEVICE void stage_samples(const void* samples, const Window& window, int first,
                                 TileShared& shared) {
  const T* x = static_cast<const T*>(samples) + window.first_sample;
  T* staged = reinterpret_cast<T*>(shared.samples);
  const int start = first * kHop - kMargin;
  const bool inside = start >= 0 && start + kTileSamples <= window.length;
  const int mine = static_cast<int>(this_thread());
  if (inside && reinterpret_cast<uintptr_t>(x + start) % 16 == 0) {
    constexpr int kStep = kUnit<T> * kWorkers;
    static_assert(kStep % kPairSamples == 0);  // so that places are as far apart for all threads
    const T* from = x + start + kUnit<T> * mine;
    T* to = staged + place<T>(kUnit<T> * mine);
#pragma unroll
    for (int s = 0; s < kTileSamples; s += kStep) {
      if (s + kUnit<T> * mine < kTileSamples) arch::cp_async<16>(to + place<T>(s), from + s);
    }
  } else {
#pragma unroll 1
    for (int s = mine; s < kTileSamples; s += kWorkers) {
      staged[place<T>(s)] = sample_at(x, window.length, start + s);
    }
  }
  arch::cp_async_commit_group();
}

// Column n of a pair's 20 x 20 samples: the first frame as real, the second as imaginary parts,
// times the Hann window. Each product is rounded once, and not anew (by a fused multiply-add) in
// every sum that it enters, which would leave more noise under a tone.
template <typename T>
AFNEXT_DEVICE void load_column(const T* samples, const float* hann, Complex (&z)[kSide]) {
#pragma unroll
  for (int n = 0; n < kSide; n += 4) {
    const Quad h = *reinterpret_cast<const Quad*>(hann + n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The column is below 20: it changes nothing in what place() divides.
      const int s = kSide * (n + i);
      z[n + i] = {arch::product(to_sample(samples[place<T>(s)]), h.at[i]),
                  arch::product(to_sample(samples[place<T>(s + kHop)]), h.at[i])};
    }
  }
}

// Rows of the spectrum: output k of a column, turned, is number `column` of row k.
AFNEXT_DEVICE void store_column(const Complex (&z)[kSide], const Complex* turns,
                                Complex (*spectrum)[kSide][kPairs]) {
#pragma unroll
  for (int k = 0; k < kSide; k += 2) {
    const Quad t = *reinterpret_cast<const Quad*>(turns + k);
    spectrum[k][0][0] = turn(z[dft20_slot(k)], t.at[0], t.at[1]);
    spectrum[k + 1][0][0] = turn(z[dft20_slot(k + 1)], t.at[2], t.at[3]);
  }
}

// Row r holds bins r + 20 k. Bin 400 - b, which parts the two frames of bin b, is number 19 - k of
// row 20 - r, in the other half of the warp; rows 0 and 10 are their own partners.
template <bool kOwnPartner>
AFNEXT_DEVICE void store_powers(const Complex (&z)[kSide], int row, float (*power)[kTileFrames]) {
#pragma unroll
  for (int k = 0; k < kSide / 2; ++k) {
    const Complex a = z[dft20_slot(k)];
    Complex b = z[dft20_slot(kSide - 1 - k)];
    if constexpr (kOwnPartner) {
      if (row == 0) b = z[dft20_slot((kSide - k) % kSide)];
    } else {
      b.re = __shfl_xor_sync(arch::kAllLanes, b.re, kPairs);
      b.im = __shfl_xor_sync(arch::kAllLanes, b.im, kPairs);
    }
    const Complex even = {a.re + b.re, a.im - b.im}, odd = {a.im + b.im, b.re - a.re};
    *reinterpret_cast<float2*>(power[row + kSide * k]) = {even.re * even.re + even.im * even.im,
                                                          odd.re * odd.re + odd.im * odd.im};
  }
}

// The filters and their logarithms of a lane's two frames: each half of a warp has four filters at
// a time, the widest first; warps that had narrow ones come again. Returns the bits of the highest
// power in the first `audible` frames.
AFNEXT_DEVICE uint32_t mel_bins(TileShared& shared, int audible) {
  const int warp = this_thread() / arch::kWarp, half = this_thread() / kPairs % 2;
  const int pair = this_thread() % kPairs;
  uint32_t even_peak = 0, odd_peak = 0;
#pragma unroll 1
  for (int duo = warp; duo < kQuads / 2; duo = duo < kWarps ? 2 * kWarps - 1 - duo : kQuads) {
    const int g = kQuads - 1 - 2 * duo - half;
    const MelQuad quad = shared.constants.quads[g];
    const Quad* weights = shared.constants.weights + quad.first_weight;
    const float* bin = &shared.power[quad.first_bin][2 * pair];
    Quad even{}, odd{};
#pragma unroll 1
    for (const Quad* end = weights + quad.bins; weights < end;
         weights += 2, bin += 2 * kTileFrames) {
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        const float2 here = *reinterpret_cast<const float2*>(bin + next * kTileFrames);
        const Quad w = weights[next];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          even.at[i] += here.x * w.at[i];
          odd.at[i] += here.y * w.at[i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      even_peak = larger(even_peak, arch::float_bits(even.at[i]));
      odd_peak = larger(odd_peak, arch::float_bits(odd.at[i]));
      even.at[i] = log10_power(even.at[i]);
      odd.at[i] = log10_power(odd.at[i]);
    }
    *reinterpret_cast<Quad*>(&shared.logs[0][pair][4 * g]) = even;
    *reinterpret_cast<Quad*>(&shared.logs[1][pair][4 * g]) = odd;
  }
  return larger(2 * pair < audible ? even_peak : 0, 2 * pair + 1 < audible ? odd_peak : 0);
}

constexpr int kWarpRows = (kTileFrames + kWarps - 1) / kWarps;  // a warp has every kWarps-th

// Rows of out from a tile's first on, the quad of this lane.
AFNEXT_DEVICE Quad* rows_of(float* out, const Window& window, int first) {
  const int lane = this_thread() % arch::kWarp;
  return reinterpret_cast<Quad*>(out) + (window.first_row + first) * kQuads + lane;
}

// From the samples of a tile, staged, to its powers.
template <typename T>
AFNEXT_DEVICE void make_powers(TileShared& shared) {
  Complex z[kSide];
  {
    const int warp = this_thread() / arch::kWarp, lane = this_thread() % arch::kWarp;
    const int pair = lane % 8 + 8 * (warp % 2), column = lane / 8 + 4 * (warp / 2);
    load_column(reinterpret_cast<const T*>(shared.samples) + place<T>(pair * kPairSamples) + column,
                shared.constants.hann[column], z);
    dft20(z);
    wait_for_workers();  // the spectrum lies where the samples lay
    Complex* spectrum = &shared.spectrum[0][column][pair ^ 8 * (column % 2)];
    store_column(z, shared.constants.turns[column],
                 reinterpret_cast<Complex(*)[kSide][kPairs]>(spectrum));
  }
  wait_for_workers();
  const int warp = this_thread() / arch::kWarp, lane = this_thread() % arch::kWarp;
  const int pair = lane % kPairs;
  const int row = lane < kPairs ? warp : warp == 0 ? kSide / 2 : kSide - warp;
#pragma unroll
  for (int n = 0; n < kSide; ++n) z[n] = shared.spectrum[row][n][pair ^ 8 * (n % 2)];
  dft20(z);
  wait_for_workers();  // the powers lie where the spectrum lay
  auto* power = reinterpret_cast<float (*)[kTileFrames]>(&shared.power[0][2 * pair]);
  if (warp == 0) {
    store_powers<true>(z, row, power);
  } else {
    store_powers<false>(z, row, power);
  }
}

// From powers to logarithms in out; what is loudest in the tile is left in shared.peaks.
AFNEXT_DEVICE void write_logs(const Window& window, int first, float* out, TileShared& shared) {
  const int warp = this_thread() / arch::kWarp, lane = this_thread() % arch::kWarp;
  const uint32_t highest =
      __reduce_max_sync(arch::kAllLanes, mel_bins(shared, window.audible - first));
  if (lane == 0) shared.peaks[warp] = highest;
  wait_for_workers();
  Quad* rows = rows_of(out, window, first);
  const int count = smaller(smaller(window.audible, window.written) - first, kTileFrames);
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    const int row = i * kWarps + warp;
    if (row < count) {
      rows[row * kQuads] = reinterpret_cast<const Quad*>(shared.logs[row % 2][row / 2])[lane];
    }
  }
}

}  // namespace afnext::cuda
