// Log-mel spectrograms: a persistent block transforms tiles of 32 frames, and floors each tile once
// its window's peak is known; all of it in one launch, with nothing in device memory but the
// result and 516 bytes of progress.
//
// Transform. Two real frames are one complex signal a + i b of 400 points: as many instructions a
// frame as 200 points and a split, without the split's twiddle factors. 400 = 20 x 20, a thread a
// column and then a row, 20 threads a pair. Transforms of 20 = 4 x 5 need no twiddle factors inside
// and take 40 registers; 16 x 25 takes 50 and leaves 9 threads of 25 idle in its second half, for
// as much arithmetic. Lanes are 16 pairs of frames in two columns, so that shared memory is free of
// bank conflicts without padding, and a row and its mirror image, which part the two frames, lie 16
// lanes apart.
//
//   a tile of 32 frames        instructions of a warp   passes of shared memory
//   load samples                        1,100                  170
//   window and first half               4,200                1,050
//   second half                         2,500                  400
//   powers                              1,200                  380
//   mel filters, logarithm              4,200                  630
//   write, floor, scale                 1,900                  130
//   in all                             15,100                2,760
//
// An H200 issues 4 instructions and makes one pass a cycle and multiprocessor: 3,800 cycles a tile,
// bound by issue; 60 windows of 3,000 frames are 43 tiles a multiprocessor, 92 us at 1.76 GHz.
// Bytes: 115 MB of samples (half of it for int16) and 92 MB of result, 45 us at 4.6 TB/s.
//
// Occupancy: 10 warps of 64 registers and 59 KB, three blocks a multiprocessor (two on sm_80): what
// one waits for, the others fill, so that samples need no second buffer.
//
// The peak. Whisper floors a window 80 dB under its loudest bin, which the last frame may hold. A
// second launch would read and write 92 MB anew, more than an L2 holds: 40 us. A window's last
// block could finish it alone, but 1.5 MB through one multiprocessor take 30 us, all of it at the
// end of a lone window. So blocks draw tickets, and ticket t transforms tile t, then finishes tile
// t - lag, about 500 tiles or 8 MB back: read from the L2, and rarely waited for. Nobody waits for
// a tile above its own ticket (lag is at least the longest window), and who draws a ticket runs, so
// the lowest ticket can always go on, however few blocks are resident. The last lag tickets finish
// only. A lone window is 94 tiles, then 94 tickets that wait for one another's peaks.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "cpu/log_mel_tables.h"
#include "cuda/arch/call.h"
#include "cuda/arch/memory.h"
#include "cuda/arch/numbers.h"
#include "cuda/fft.h"
#include "cuda/log_mel.h"

namespace afnext::cuda {
namespace {

using cpu::kFrameSamples;
using cpu::kHop;
using cpu::kMelBins;
using cpu::kWindowFrames;
using cpu::kWindowSamples;
using cpu::Twiddle;

constexpr int kMargin = kFrameSamples / 2;  // a frame is centred on its first sample
constexpr int kBins = kFrameSamples / 2;    // bin 0 and the Nyquist bin lie in no filter
constexpr int kSide = 20;                   // 400 = 20 x 20
constexpr int kPairs = 16, kTileFrames = 2 * kPairs;
constexpr int kThreads = kPairs * kSide, kWarps = kThreads / arch::kWarp;
constexpr int kBlocksPerMultiprocessor = 3;
constexpr int kTileSamples = (kTileFrames - 1) * kHop + kFrameSamples;
constexpr int kQuads = kMelBins / 4, kQuadBins = 256;
constexpr int kLogStride = kMelBins + 4;  // lanes that write a column meet no bank twice
constexpr int kMaxWindows = 64;           // of a launch
constexpr uint32_t kInfinity = 0x7f800000;
constexpr float kQuietest = -10.0f;

struct Window {
  int64_t first_sample, first_row;
  int length;      // samples
  int audible;     // frames that reach audio; those past them are silent
  int written;     // rows of out
  int first_tile;  // of the launch
};

struct Tables {
  float hann[kFrameSamples];
  Twiddle by_400[kFrameSamples / 4 + 1];  // exp(-2 pi i k / 400), the first quarter
  // Filters 4 g .. 4 g + 3 weigh bins quad_first[g] .. with quads[quad_begin[g]] ..
  int16_t quad_first[kQuads], quad_begin[kQuads + 1];
  float quads[kQuadBins][4];
};

// What the blocks tell each other, zero at first. Powers are at least 0 and order like their bits,
// with infinity and NaN above all finite ones.
struct Progress {
  uint32_t tickets;
  uint32_t peak[kMaxWindows];  // highest power of the window's filters
  uint32_t done[kMaxWindows];  // tiles whose logarithms lie in out
};

struct alignas(16) Quad {
  float at[4];
};

struct Params {
  const void* samples;
  float* out;
  Progress* progress;
  int windows, tiles;
  int lag;  // from a tile's logarithms to its end, in tickets
  Window window[kMaxWindows];
  Tables tables;
};

struct Tile {
  int window;  // below 0: none
  int first;   // frame
};

struct Bins {
  float power[kBins][kTileFrames];
  float logs[kTileFrames][kLogStride];
};

// Sample s of a tile lies at place(s): the frames of 16 pairs begin in 16 even banks, so that two
// neighbouring columns of them meet no bank twice.
constexpr int kPairSamples = 2 * kHop, kGap = 2;
AFNEXT_DEVICE constexpr int place(int s) { return s + kGap * (s / kPairSamples); }

struct Shared {
  // The three stages of a tile, one after the other.
  union {
    float samples[place(kTileSamples - 1) + 1];
    Complex spectrum[kSide][kSide][kPairs];  // [row][column][pair]
    Bins bins;
  };
  float hann[kSide][kSide];     // [column][n] of sample column + 20 n
  Complex turns[kSide][kSide];  // [column][row]: exp(-2 pi i column row / 400)
  Quad quads[kQuadBins];
  uint32_t peaks[kWarps];
  uint32_t window_peak;
  Tile transform, finish;  // what the block does next
};

static_assert(kBlocksPerMultiprocessor * (sizeof(Shared) + 1024) <= 228 << 10, "H100's");

AFNEXT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
AFNEXT_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

AFNEXT_DEVICE float to_sample(float x) { return x; }
AFNEXT_DEVICE float to_sample(int16_t x) { return static_cast<float>(x) * 0x1p-15f; }

AFNEXT_DEVICE float log10_power(float power) {
  constexpr float log10_of_2 = 0.301029996f;
  return fmaxf(arch::log2_approx(power) * log10_of_2, kQuietest);
}

AFNEXT_DEVICE void load_tables(const Tables& tables, Shared& shared) {
  for (int i = threadIdx.x; i < kFrameSamples; i += kThreads) {
    const int column = i / kSide, n = i % kSide;
    shared.hann[column][n] = tables.hann[column + kSide * n];
    const int angle = column * n, quarter = angle / (kFrameSamples / 4);
    Complex turned{tables.by_400[angle % (kFrameSamples / 4)].cos,
                   tables.by_400[angle % (kFrameSamples / 4)].sin};
    for (int q = 0; q < quarter; ++q) turned = times_minus_i(turned);
    shared.turns[column][n] = turned;
  }
  for (int i = threadIdx.x; i < 4 * kQuadBins; i += kThreads) {
    shared.quads[i / 4].at[i % 4] = tables.quads[i / 4][i % 4];
  }
}

AFNEXT_DEVICE Tile tile_of(const Params& p, int tile) {
  if (tile < 0 || tile >= p.tiles) return {-1, 0};
  int w = 0;
#pragma unroll
  for (int step = kMaxWindows / 2; step > 0; step /= 2) {
    if (w + step < p.windows && p.window[w + step].first_tile <= tile) w += step;
  }
  return {w, (tile - p.window[w].first_tile) * kTileFrames};
}

// Sample i of a window: zeros past the audio, reflected ends.
template <typename T>
AFNEXT_DEVICE float sample_at(const T* x, int length, int i) {
  const int inside = i < 0 ? -i : i < kWindowSamples ? i : 2 * (kWindowSamples - 1) - i;
  return inside < length ? to_sample(x[inside]) : 0.0f;
}

// Samples of a tile that all lie in the window, kVector at a time.
template <int kVector, typename T>
AFNEXT_DEVICE void copy_samples(const T* x, float* staged) {
  struct alignas(kVector * sizeof(T)) Samples {
    T at[kVector];
  };
  struct alignas(kVector * sizeof(float)) Staged {
    float at[kVector];
  };
#pragma unroll 4
  for (int s = kVector * threadIdx.x; s < kTileSamples; s += kVector * kThreads) {
    const Samples from = *reinterpret_cast<const Samples*>(x + s);
    Staged to;
#pragma unroll
    for (int j = 0; j < kVector; ++j) to.at[j] = to_sample(from.at[j]);
    *reinterpret_cast<Staged*>(staged + place(s)) = to;
  }
}

template <typename T>
AFNEXT_DEVICE void load_samples(const T* x, int length, int start, float* staged) {
  if (start < 0 || start + kTileSamples > length) {
#pragma unroll 1
    for (int s = threadIdx.x; s < kTileSamples; s += kThreads) {
      staged[place(s)] = sample_at(x, length, start + s);
    }
  } else if (reinterpret_cast<uintptr_t>(x + start) % (2 * sizeof(T)) == 0) {
    copy_samples<2>(x + start, staged);
  } else {
    copy_samples<1>(x + start, staged);
  }
}

// Column n of a pair's 20 x 20 samples: the first frame as real, the second as imaginary parts,
// times the Hann window. Each product is rounded once, and not anew (by a fused multiply-add) in
// every sum that it enters, which would leave more noise under a tone.
AFNEXT_DEVICE void load_column(const float* samples, const float* hann, Complex (&z)[kSide]) {
#pragma unroll
  for (int n = 0; n < kSide; n += 4) {
    const Quad h = *reinterpret_cast<const Quad*>(hann + n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The column is below 20: it changes nothing in what place() divides.
      const int s = kSide * (n + i);
      z[n + i] = {arch::product(samples[place(s)], h.at[i]),
                  arch::product(samples[place(s + kHop)], h.at[i])};
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

// The filters and their logarithms: a lane a frame, a warp four filters at a time, the widest
// first. Returns the bits of the highest power that the thread saw.
AFNEXT_DEVICE uint32_t mel_bins(const Tables& tables, const Quad* quads, const float* power,
                                float* logs) {
  uint32_t peak = 0;
#pragma unroll 1
  for (int g = kQuads - 1 - static_cast<int>(threadIdx.x) / arch::kWarp; g >= 0; g -= kWarps) {
    const Quad *weights = quads + tables.quad_begin[g], *end = quads + tables.quad_begin[g + 1];
    const float* bin = power + tables.quad_first[g] * kTileFrames;
    Quad sums{};
#pragma unroll 2
    for (; weights < end; ++weights, bin += kTileFrames) {
      const float here = *bin;
      const Quad w = *weights;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.at[i] += here * w.at[i];
    }
#pragma unroll
    for (float& sum : sums.at) {
      peak = larger(peak, arch::float_bits(sum));
      sum = log10_power(sum);
    }
    *reinterpret_cast<Quad*>(logs + 4 * g) = sums;
  }
  return peak;
}

// Calls `use` with the rows of a warp: every kWarps-th below `rows` of a tile.
template <typename Use>
AFNEXT_DEVICE void for_rows(int rows, const Use& use) {
  const int warp = threadIdx.x / arch::kWarp;
#pragma unroll
  for (int i = 0; i < kTileFrames; i += kWarps) {
    if (i + warp < smaller(rows, kTileFrames)) use(i + warp);
  }
}

// Leaves a tile's logarithms in out, and what is loudest in its window's peak.
template <typename T>
AFNEXT_DEVICE void transform_tile(const Params& p, Tile tile, Shared& shared) {
  const Window& window = p.window[tile.window];
  const int first = tile.first;
  const int warp = threadIdx.x / arch::kWarp, lane = threadIdx.x % arch::kWarp;
  const int pair = threadIdx.x % kPairs, column = threadIdx.x / kPairs;
  load_samples(static_cast<const T*>(p.samples) + window.first_sample, window.length,
               first * kHop - kMargin, shared.samples);
  __syncthreads();
  Complex z[kSide];
  load_column(shared.samples + place(pair * kPairSamples) + column, shared.hann[column], z);
  dft20(z);
  __syncthreads();  // the spectrum lies where the samples lay
  store_column(z, shared.turns[column],
               reinterpret_cast<Complex(*)[kSide][kPairs]>(&shared.spectrum[0][column][pair]));
  __syncthreads();
  const int row = lane < kPairs ? warp : warp == 0 ? kSide / 2 : kSide - warp;
#pragma unroll
  for (int n = 0; n < kSide; ++n) z[n] = shared.spectrum[row][n][pair];
  dft20(z);
  __syncthreads();  // the powers lie where the spectrum lay
  auto* power = reinterpret_cast<float (*)[kTileFrames]>(&shared.bins.power[0][2 * pair]);
  if (warp == 0) {
    store_powers<true>(z, row, power);
  } else {
    store_powers<false>(z, row, power);
  }
  __syncthreads();
  const uint32_t seen =
      mel_bins(p.tables, shared.quads, &shared.bins.power[0][lane], shared.bins.logs[lane]);
  const uint32_t highest =
      __reduce_max_sync(arch::kAllLanes, first + lane < window.audible ? seen : 0u);
  if (lane == 0) shared.peaks[warp] = highest;
  __syncthreads();
  auto* out = reinterpret_cast<Quad*>(p.out) + (window.first_row + first) * kQuads + lane;
  for_rows(smaller(window.audible, window.written) - first, [&](int row) {
    out[row * kQuads] = reinterpret_cast<const Quad*>(shared.bins.logs[row])[lane];
  });
  __syncthreads();  // all of the tile is written
  if (threadIdx.x == 0) {
    uint32_t peak = 0;
    for (const uint32_t part : shared.peaks) peak = larger(peak, part);
    atomicMax(&p.progress->peak[tile.window], peak);
    arch::add_release(&p.progress->done[tile.window], 1u);
  }
}

// Floors and scales a tile's logarithms once its window's peak is known; fills silent frames.
AFNEXT_DEVICE void finish_tile(const Params& p, Tile tile, Shared& shared) {
  const Window& window = p.window[tile.window];
  const int first = tile.first;
  if (threadIdx.x == 0) {
    const uint32_t tiles = (window.audible + kTileFrames - 1) / kTileFrames;
    while (arch::load_acquire(&p.progress->done[tile.window]) < tiles) {
    }
    shared.window_peak = arch::load_acquire(&p.progress->peak[tile.window]);
  }
  __syncthreads();
  const uint32_t peak = shared.window_peak;
  const float floor = log10_power(arch::bits_float(peak)) - 8.0f;
  const int lane = threadIdx.x % arch::kWarp;
  auto* out = reinterpret_cast<Quad*>(p.out) + (window.first_row + first) * kQuads + lane;
  for_rows(window.written - first, [&](int row) {
    Quad logs{kQuietest, kQuietest, kQuietest, kQuietest};
    if (first + row < window.audible) logs = out[row * kQuads];
#pragma unroll
    for (float& log : logs.at) {
      log = peak < kInfinity ? fmaxf(log, floor) * 0.25f + 1.0f : arch::bits_float(0x7fc00000);
    }
    out[row * kQuads] = logs;
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    log_mel_kernel(const __grid_constant__ Params p) {
  auto& shared = arch::shared_memory<Shared>();
  load_tables(p.tables, shared);
#pragma unroll 1
  while (true) {
    if (threadIdx.x == 0) {
      const auto ticket = static_cast<int>(atomicAdd(&p.progress->tickets, 1u));
      shared.transform = tile_of(p, ticket);
      shared.finish = tile_of(p, ticket - p.lag);
    }
    __syncthreads();
    const Tile transform = shared.transform, finish = shared.finish;
    if (transform.window < 0 && finish.window < 0) break;
    if (transform.window >= 0 && transform.first < p.window[transform.window].audible) {
      transform_tile<T>(p, transform, shared);
    }
    if (finish.window >= 0) finish_tile(p, finish, shared);
    __syncthreads();
  }
}

Tables make_tables() {
  const cpu::LogMelTables& from = cpu::log_mel_tables();
  Tables t;
  std::copy_n(from.hann, std::size(t.hann), t.hann);
  std::copy_n(from.by_400, std::size(t.by_400), t.by_400);
  std::copy_n(from.quad_first, std::size(t.quad_first), t.quad_first);
  std::copy_n(from.quad_begin, std::size(t.quad_begin), t.quad_begin);
  std::memcpy(t.quads, from.quads, sizeof(t.quads));
  return t;
}

int tiles_of(const Window& w) {
  return w.written == 0 ? 0 : (std::max(w.audible, w.written) + kTileFrames - 1) / kTileFrames;
}

}  // namespace

void log_mel(const TensorView& samples, const TensorView& cu_samples, const TensorView& cu_frames,
             const TensorView& out, Stream stream) {
  const Call call("log_mel", samples, stream);
  const auto *ends = cu_samples.as<const int64_t>(), *rows = cu_frames.as<const int64_t>();
  const int64_t windows = cu_samples.shape[0] - 1;
  const int64_t launches = (windows + kMaxWindows - 1) / kMaxWindows;
  const Scratch scratch(call, launches * sizeof(Progress));
  call.clear(scratch.as<void>(), launches * sizeof(Progress));
  for (int64_t i = 0; i < launches; ++i) {
    Params p{samples.data, out.as<float>(), scratch.as<Progress>() + i, 0, 0, 0, {}, make_tables()};
    int longest = 0;
    for (int64_t w = i * kMaxWindows; w < std::min(windows, (i + 1) * kMaxWindows); ++w) {
      const auto length = static_cast<int>(ends[w + 1] - ends[w]);
      const int reached = std::min((length + kMargin + kHop - 1) / kHop, kWindowFrames);
      const Window window{ends[w],
                          rows[w],
                          length,
                          length > 0 ? reached : 0,
                          static_cast<int>(rows[w + 1] - rows[w]),
                          p.tiles};
      p.window[p.windows++] = window;
      p.tiles += tiles_of(window);
      longest = std::max(longest, tiles_of(window));
    }
    const int resident = kBlocksPerMultiprocessor * call.device().multiprocessors;
    p.lag = std::min(p.tiles, longest + resident);
    const dim3 grid(static_cast<unsigned>(std::min(p.tiles, resident)));
    if (samples.dtype == DType::i16) {
      call.launch<log_mel_kernel<int16_t>>(grid, kThreads, sizeof(Shared), p);
    } else {
      call.launch<log_mel_kernel<float>>(grid, kThreads, sizeof(Shared), p);
    }
  }
}

}  // namespace afnext::cuda
