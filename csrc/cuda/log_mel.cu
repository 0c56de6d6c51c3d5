// Log-mel spectrograms, of 32 frames at a time (log_mel_tile.h).
//
// The peak. Whisper floors a window 80 dB under its loudest bin, which the last frame may hold, so
// that a tile is written as logarithms and finished once all of its window's are.
//
// Few tiles, whose logarithms an L2 holds beside all else: a block makes one, and the blocks of a
// second launch, which start while the first one ends, finish them. Nothing is cleared before and
// nobody waits for a word in memory. On an H200 a lone window takes 10 us, of which its bytes are
// 0.8 us and its instructions, on 94 of 132 multiprocessors, 2: the rest are two launches one after
// the other and a tile's six stages. (With tickets, as below, it takes 15.)
//
// Many: a second launch would read and write 92 MB anew, more than an L2 holds: 186 us for 60
// windows on an H200, where tickets take 143. Persistent blocks draw them, and ticket t makes tile
// t, then finishes tile t - lag, about 1,280 tiles or 21 MB back: read from the L2, and rarely
// waited for. (900 tiles take 149 us, 500 some 5 % more.) A warp beside the ten that work, the
// clerk, draws the next ticket while they are at one, so that its samples come meanwhile, tells
// other blocks what this one has written, which waits for stores some microseconds, and fetches
// peaks. Nobody waits for a tile above its own ticket (lag is at least the longest window), and who
// draws a ticket runs, so the lowest ticket can always go on, however few blocks are resident. The
// last lag tickets finish only.
//
//   60 windows of 30 s on an H200: 207 MB of samples and result, 49 us as a copy; 14,000
//   instructions of a warp a tile, 43 tiles a multiprocessor, 77 us at four a cycle; 143 us.
//
// What is left is latency: issue slots are busy for 54 %. 33 warps of 56 registers and 74 KB a
// block are three blocks a multiprocessor (two on sm_80), whose stages overlap; 2 blocks take 162.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>

#include "cuda/arch/call.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/arch/memory.h"
#include "cuda/log_mel.h"
#include "cuda/log_mel_tile.h"

namespace afnext::cuda {
namespace {

constexpr int kBlocksPerMultiprocessor = 3;
constexpr int kMaxWindows = 64;  // of a launch
constexpr int kThreads = kWorkers + arch::kWarp;
constexpr int kWrittenBarrier = 2;
constexpr int kFinishThreads = kTileFrames * kQuads;

// What the blocks tell each other, zero at first. Powers are at least 0 and order like their bits,
// with infinity and NaN above all finite ones.
struct Progress {
  uint32_t tickets;
  uint32_t peak[kMaxWindows];   // highest power of the window's filters
  uint32_t done[kMaxWindows];   // tiles whose logarithms lie in out
  uint32_t known[kMaxWindows];  // when all are, the peak and 1
};

struct Params {
  const void* samples;
  float* out;
  Progress* progress;
  uint32_t* tile_peaks;  // [tiles], where each tile has a block of its own
  int windows, tiles;
  int lag;  // from a tile's logarithms to its end, in tickets
  Window window[kMaxWindows];
};

constexpr int kNone = -1, kLast = -2;  // no tile, nor any later
struct Tile {
  int window;  // or kNone, kLast
  int first;   // frame
};

struct Finish {
  Tile tile;
  uint32_t peak;
};

struct Shared : TileShared {
  // Of even and odd tickets of the block; what it finishes is a ticket behind.
  Tile transform[2];
  Finish finish[2];
};
static_assert(kBlocksPerMultiprocessor * (sizeof(Shared) + 1024) <= 228 << 10, "H100's");

AFNEXT_DEVICE int window_of(const Params& p, int tile) {
  int w = 0;
#pragma unroll
  for (int step = kMaxWindows / 2; step > 0; step /= 2) {
    if (w + step < p.windows && p.window[w + step].first_tile <= tile) w += step;
  }
  return w;
}
AFNEXT_DEVICE Tile tile_of(const Params& p, int tile) {
  if (tile < 0 || tile >= p.tiles) return {tile < p.tiles + p.lag ? kNone : kLast, 0};
  const int w = window_of(p, tile);
  return {w, (tile - p.window[w].first_tile) * kTileFrames};
}
AFNEXT_DEVICE Tile to_transform(const Params& p, int ticket) {
  const Tile tile = tile_of(p, ticket);
  return tile.window >= 0 && tile.first >= p.window[tile.window].audible ? Tile{kNone, 0} : tile;
}

// A warp's rows of a tile that it finishes.
struct Rows {
  Quad at[kWarpRows];

  // Silent frames have no logarithms in out.
  AFNEXT_DEVICE void read(const Params& p, const Tile& tile) {
    const Window& window = p.window[tile.window];
    const Quad* out = rows_of(p.out, window, tile.first);
    const int rows = smaller(window.audible, window.written) - tile.first;
    const int warp = this_thread() / arch::kWarp;
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = i * kWarps + warp;
      at[i] = Quad{kQuietest, kQuietest, kQuietest, kQuietest};
      if (row < smaller(rows, kTileFrames)) at[i] = out[row * kQuads];
    }
  }
  AFNEXT_DEVICE void write(const Params& p, const Finish& finish) const {
    const Window& window = p.window[finish.tile.window];
    const Ending ending(finish.peak);
    Quad* out = rows_of(p.out, window, finish.tile.first);
    const int rows = window.written - finish.tile.first;
    const int warp = this_thread() / arch::kWarp;
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = i * kWarps + warp;
      if (row < smaller(rows, kTileFrames)) out[row * kQuads] = ending(at[i]);
    }
  }
};

template <typename T>
AFNEXT_DEVICE void work(const Params& p, Shared& shared) {
  const auto stage = [&](const Tile& tile) {
    if (tile.window >= 0) {
      stage_samples<T>(p.samples, p.window[tile.window], tile.first, shared);
    }
  };
  stage(shared.transform[0]);
#pragma unroll 1
  for (int turn = 0;; turn ^= 1) {
    arch::cp_async_wait_group<0>();
    wait_for_workers();
    if (shared.transform[turn].window >= 0) make_powers<T>(shared);
    __syncthreads();  // the clerk has told what comes next
    Rows rows{};
    if (shared.finish[turn].tile.window >= 0) rows.read(p, shared.finish[turn].tile);
    stage(shared.transform[turn ^ 1]);
    const Tile tile = shared.transform[turn];
    if (tile.window >= 0) write_logs(p.window[tile.window], tile.first, p.out, shared);
    arch::bar_arrive(kWrittenBarrier, kThreads);
    const Finish finish = shared.finish[turn];
    if (finish.tile.window >= 0) rows.write(p, finish);
    if (tile.window == kLast) break;
  }
}

AFNEXT_DEVICE int draw_ticket(const Params& p) {
  return static_cast<int>(atomicAdd(&p.progress->tickets, 1u));
}

// Tells that a tile is written whose highest power has these bits; the last one of its window, what
// the window's is.
AFNEXT_DEVICE void report(const Params& p, int window, uint32_t peak) {
  const int tiles = (p.window[window].audible + kTileFrames - 1) / kTileFrames;
  Progress& progress = *p.progress;
  atomicMax(&progress.peak[window], peak);
  const auto before = static_cast<int>(arch::fetch_add_acquire_release(&progress.done[window], 1u));
  if (before < tiles - 1) return;
  const uint32_t highest = arch::load_acquire(&progress.peak[window]);
  arch::add_release(&progress.known[window], (highest < kInfinity ? highest : kInfinity) + 1);
}

// Before turn i's barrier the workers are told what they transform in turn i + 1, and what they
// finish in this one, by turn i - 1's ticket. After it, while they go on, turn i - 1's tile is
// reported, which waits for stores, and the peak fetched that turn i's ticket needs.
AFNEXT_DEVICE void keep_books(const Params& p, Shared& shared, int ticket) {
  const int lane = threadIdx.x % arch::kWarp;
  int next = lane == 0 ? draw_ticket(p) : 0;
  Tile tile = to_transform(p, ticket), written{kNone, 0};
  Finish finish{{kNone, 0}, 0};
  uint32_t peak = 0;
#pragma unroll 1
  for (int turn = 0;; turn ^= 1) {
    if (lane == 0) {
      shared.transform[turn ^ 1] = to_transform(p, next);
      shared.finish[turn] = finish;
    }
    __syncthreads();
    int later = 0;
    if (lane == 0) {
      later = draw_ticket(p);
      finish = {tile_of(p, ticket - p.lag), 0};
      const bool ends = finish.tile.window >= 0 && p.window[finish.tile.window].audible > 0;
      const uint32_t* known = &p.progress->known[ends ? finish.tile.window : 0];
      uint32_t peak_known = 0;
      if (written.window >= 0) {
        if (ends) peak_known = arch::load_relaxed(known);
        report(p, written.window, peak);
      }
      if (ends) {
        while (peak_known == 0) peak_known = arch::load_acquire(known);
        finish.peak = peak_known - 1;
      }
    }
    arch::bar_sync(kWrittenBarrier, kThreads);
    if (tile.window == kLast) break;
    if (tile.window >= 0) {
      peak = __reduce_max_sync(arch::kAllLanes, lane < kWarps ? shared.peaks[lane] : 0u);
    }
    written = tile;
    ticket = __shfl_sync(arch::kAllLanes, next, 0);
    tile = to_transform(p, ticket);
    next = later;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    log_mel_kernel(const __grid_constant__ Params p, const __grid_constant__ Constants constants) {
  auto& shared = arch::shared_memory<Shared>();
  load_constants(constants, shared.constants);
  int ticket = 0;
  if (threadIdx.x >= kWorkers) {
    if (threadIdx.x == kWorkers) {
      ticket = draw_ticket(p);
      shared.transform[0] = to_transform(p, ticket);
    }
    ticket = __shfl_sync(arch::kAllLanes, ticket, 0);
  }
  __syncthreads();
  if (threadIdx.x < kWorkers) {
    work<T>(p, shared);
  } else {
    keep_books(p, shared, ticket);
  }
}

// A block a tile, its peak by itself.
template <typename T>
__global__ void __launch_bounds__(kWorkers, kBlocksPerMultiprocessor)
    log_mel_tile_kernel(const __grid_constant__ Params p,
                        const __grid_constant__ Constants constants) {
  auto& shared = arch::shared_memory<TileShared>();
  arch::griddepcontrol_launch_dependents();
  const Tile tile = to_transform(p, static_cast<int>(blockIdx.x));
  arch::griddepcontrol_wait();
  uint32_t peak = 0;
  if (tile.window >= 0) {
    const Window& window = p.window[tile.window];
    stage_samples<T>(p.samples, window, tile.first, shared);
    load_constants(constants, shared.constants);
    arch::cp_async_wait_group<0>();
    __syncthreads();
    make_powers<T>(shared);
    __syncthreads();
    write_logs(window, tile.first, p.out, shared);
    for (const uint32_t part : shared.peaks) peak = larger(peak, part);
  }
  if (threadIdx.x == 0) p.tile_peaks[blockIdx.x] = peak;
}

__global__ void __launch_bounds__(kFinishThreads)
    log_mel_finish_kernel(const __grid_constant__ Params p) {
  const int row = static_cast<int>(threadIdx.x) / arch::kWarp;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const Tile tile = tile_of(p, static_cast<int>(blockIdx.x));
  const Window& window = p.window[tile.window];
  const int tiles = (window.audible + kTileFrames - 1) / kTileFrames;
  Quad* out = rows_of(p.out, window, tile.first + row);
  arch::griddepcontrol_wait();
  Quad logs{kQuietest, kQuietest, kQuietest, kQuietest};
  if (tile.first + row < smaller(window.audible, window.written)) logs = *out;
  uint32_t peak = 0;
  for (int i = lane; i < tiles; i += arch::kWarp) {
    peak = larger(peak, p.tile_peaks[window.first_tile + i]);
  }
  peak = __reduce_max_sync(arch::kAllLanes, peak);
  if (tile.first + row < window.written) *out = Ending(peak)(logs);
}

Constants make_constants() {
  const cpu::LogMelTables& from = cpu::log_mel_tables();
  Constants to{};
  for (int column = 0; column < kSide; ++column) {
    for (int n = 0; n < kSide; ++n) {
      to.hann[column][n] = from.hann[column + kSide * n];
      const int angle = column * n, quarter = angle / 100;
      const cpu::Twiddle& by = from.by_400[angle % 100];
      Complex turned{by.cos, by.sin};
      for (int q = 0; q < quarter; ++q) turned = {turned.im, -turned.re};
      to.turns[column][n] = turned;
    }
  }
  // Both quads of a duo as many bins, some of no weight.
  const auto bins_of = [&](int g) { return from.quad_begin[g + 1] - from.quad_begin[g]; };
  int count = 0;
  for (int g = 0; g < kQuads; ++g) {
    const int bins = (std::max(bins_of(g), bins_of(g ^ 1)) + 1) / 2 * 2;
    const int first = std::min<int>(from.quad_first[g], kBins - bins);
    to.quads[g] = {static_cast<int16_t>(first), static_cast<int16_t>(count),
                   static_cast<int16_t>(bins), 0};
    std::memcpy(to.weights + count + from.quad_first[g] - first, from.quads[from.quad_begin[g]],
                bins_of(g) * sizeof(Quad));
    count += bins;
  }
  return to;
}

// Made by the first call rather than when the module is loaded.
const Constants& constants() {
  static Constants made;
  static std::once_flag once;
  std::call_once(once, [] { made = make_constants(); });
  return made;
}

int tiles_of(const Window& w) {
  return w.written == 0 ? 0 : (std::max(w.audible, w.written) + kTileFrames - 1) / kTileFrames;
}

template <typename T>
void run(const Call& call, Params p, int longest) {
  const int resident = kBlocksPerMultiprocessor * call.device().multiprocessors;
  const auto blocks = [](int n) { return dim3(static_cast<unsigned>(n)); };
  if (p.tiles <= 2 * resident) {
    const Scratch peaks(call, p.tiles * sizeof(uint32_t));
    p.tile_peaks = peaks.as<uint32_t>();
    call.launch_early<log_mel_tile_kernel<T>>(blocks(p.tiles), kWorkers, sizeof(TileShared), p,
                                              constants());
    call.launch_early<log_mel_finish_kernel>(blocks(p.tiles), kFinishThreads, 0, p);
  } else {
    const Scratch progress(call, sizeof(Progress));
    call.clear(progress.as<void>(), sizeof(Progress));
    p.progress = progress.as<Progress>();
    p.lag = std::min(p.tiles, longest + 3 * resident);
    call.launch<log_mel_kernel<T>>(blocks(resident), kThreads, sizeof(Shared), p, constants());
  }
}

}  // namespace

void log_mel(const TensorView& samples, const TensorView& cu_samples, const TensorView& cu_frames,
             const TensorView& out, Stream stream) {
  const Call call("log_mel", samples, stream);
  const auto *ends = cu_samples.as<const int64_t>(), *rows = cu_frames.as<const int64_t>();
  const int64_t windows = cu_samples.shape[0] - 1;
  for (int64_t first = 0; first < windows; first += kMaxWindows) {
    Params p{samples.data, out.as<float>(), nullptr, nullptr, 0, 0, 0, {}};
    int longest = 0;
    for (int64_t w = first; w < std::min(windows, first + kMaxWindows); ++w) {
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
    if (samples.dtype == DType::i16) {
      run<int16_t>(call, p, longest);
    } else {
      run<float>(call, p, longest);
    }
  }
}

}  // namespace afnext::cuda
