// Products with int8 and int4 weights, all in integers: x becomes integers too, of 16 bits a block
// (whose rounding is far below that of bf16) or of 8 where the weight asks for it. The sums of a
// group meet its scales in float32.
//
// An output is summed in order of K whatever the tiles, the threads and the other rows of x are.
#include "cpu/packed_epilogue.h"
#include "cpu/parallel.h"
#include "cpu/quantized_rows.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kPrefetchBytes = 1536;   // 1 to 2 KB ahead measured best
constexpr int64_t kRoundBytes = 12 << 20;  // of x: rows that are in flight stay in the last cache
constexpr int64_t kBytesPerThread = 1 << 17;  // of the weight: below this, waking one costs more

// Rows of x in a tile: with two registers of columns, as many as leave some for the weight.
template <typename Engine, int bits>
constexpr int kTileRows = (kLanes == 16 ? (bits == 8 ? 28 : 24) : 8) / (2 * Engine::kPlanes);

// R rows of x against 2 * kLanes columns of a group.
template <typename Engine, int bits, int R>
AFNEXT_INLINE void group_tile(const QuantizedPanel& q, const char* scales, const char* group,
                              int64_t column, const int32_t* words, const float* x_scales,
                              const int32_t* starts, const float* x_sums, float* sums) {
  I32 acc[R][Engine::kPlanes][2] = {};
  for (int r = 0; r < R; ++r) {
    acc[r][Engine::kPlanes - 1][0] = acc[r][Engine::kPlanes - 1][1] = broadcast_word(starts[r]);
  }
  const char* step = group + q.prefix + 4 * column;
  for (int64_t s = 0; s < q.steps; ++s, step += kStepBytes) {
    __builtin_prefetch(step + kPrefetchBytes);
    if constexpr (kLanes == 16) __builtin_prefetch(step + kPrefetchBytes + 64);
    I32 weight[2] = {load_words(step), load_words(step + 4 * kLanes)};
    if constexpr (bits == 8) {
      Engine::template step<R>(words, weight, acc);
      words += R * Engine::kWords;
    } else {
      const I32 low[2] = {weight[0] & 0x0f0f0f0f, weight[1] & 0x0f0f0f0f};
      Engine::template step<R>(words, low, acc);
      const I32 high[2] = {(weight[0] >> 4) & 0x0f0f0f0f, (weight[1] >> 4) & 0x0f0f0f0f};
      Engine::template step<R>(words + R * Engine::kWords, high, acc);
      words += 2 * R * Engine::kWords;
    }
  }
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const int64_t first = column + c * kLanes;
    const F32 scale = q.header > 0 ? load(reinterpret_cast<const float*>(scales) + first)
                                   : load(reinterpret_cast<const bf16*>(scales) + first);
    const F32 zero =
        q.zero_points ? load(reinterpret_cast<const bf16*>(scales) + kPanelColumns + first) : F32{};
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      I32 total = acc[r][Engine::kPlanes - 1][c];
      if constexpr (Engine::kPlanes == 2) total += acc[r][0][c] << 8;
      F32 value = __builtin_convertvector(total, F32);
      if (q.zero_points) value -= zero * x_sums[r];
      float* kept = sums + r * kPanelColumns + first;
      store(kept, fma(value * scale, broadcast(x_scales[r]), load(kept)));
    }
  }
}

// sums [R, 32] of a tile of x against a panel.
template <typename Engine, int bits, int R>
void tile(const QuantizedPanel& q, const char* panel, const int32_t* x, float* sums) {
  std::memset(sums, 0, R * kPanelColumns * sizeof(float));
  const char* group = panel + q.header;
  for (int64_t b = 0; b < q.blocks; ++b, x += block_words<Engine>(q, R)) {
    const float* x_scales = reinterpret_cast<const float*>(x + kQuads * Engine::kWords * R);
    const int32_t* starts = reinterpret_cast<const int32_t*>(x_scales + R);
    const float* x_sums = reinterpret_cast<const float*>(starts + q.groups * R);
    for (int64_t g = 0; g < q.groups; ++g, group += q.group_bytes) {
      for (int64_t column = 0; column < kPanelColumns; column += 2 * kLanes) {
        group_tile<Engine, bits, R>(q, q.header > 0 ? panel : group, group, column,
                                    x + g * q.group / 4 * R * Engine::kWords, x_scales,
                                    starts + g * R, x_sums + g * R, sums);
      }
    }
  }
}

// tile<rows>, for rows known at run time.
template <typename Engine, int bits, int R = kTileRows<Engine, bits>>
void tile_of(int64_t rows, const QuantizedPanel& q, const char* panel, const int32_t* x,
             float* sums) {
  if constexpr (R > 1) {
    if (rows != R) return tile_of<Engine, bits, R - 1>(rows, q, panel, x, sums);
  }
  tile<Engine, bits, R>(q, panel, x, sums);
}

// Rows [row, row + rows) of x, cut into tiles of even height, as integers.
template <typename Engine, int bits>
struct Round {
  static constexpr int64_t kRows = kTileRows<Engine, bits>;

  const PackedLinearArgs& a;
  const QuantizedPanel& q;
  int64_t row, rows, tiles;
  int32_t* words;

  Round(const PackedLinearArgs& args, const QuantizedPanel& panel, int64_t first, int64_t count)
      : a(args), q(panel), row(first), rows(count), tiles((count + kRows - 1) / kRows) {
    words = scratch<int32_t>(0, static_cast<size_t>(q.blocks * block_words<Engine>(q, rows)));
  }

  int64_t begin(int64_t tile) const { return rows * tile / tiles; }
  int32_t* words_of(int64_t tile) const {
    return words + q.blocks * block_words<Engine>(q, begin(tile));
  }

  template <typename T>
  void quantize() const {
    const float limit = a.weight.activation_bits == 8 ? 127.0f : 32512.0f;  // 127 * 256
    parallel_for(rows, (1 << 15) / (a.weight.k + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        int64_t t = r * tiles / rows;
        while (begin(t + 1) <= r) ++t;
        const int64_t height = begin(t + 1) - begin(t);
        const T* x = static_cast<const T*>(a.x) + (row + r) * a.x_stride;
        for (int64_t b = 0; b < q.blocks; ++b) {
          const int64_t left = a.weight.k - b * kBlock;
          quantize_block<Engine>(q, limit, x + b * kBlock, left < kBlock ? left : kBlock,
                                 r - begin(t), height,
                                 words_of(t) + b * block_words<Engine>(q, height));
        }
      }
    });
  }

  // Every panel is read once from memory and meets all tiles while it lies in L2.
  void multiply() const {
    const int64_t panels = a.weight.panels(), wanted = 4 * num_threads();
    const int64_t split = panels >= wanted ? 1 : (wanted + panels - 1) / panels;
    const int64_t parts = split < tiles ? split : tiles;
    const int64_t cost = q.bytes * (1 + tiles / parts / 2) + 1;
    parallel_for(panels * parts, kBytesPerThread / cost + 1, [&](int64_t first, int64_t last) {
      float sums[kRows * kPanelColumns];
      for (int64_t i = first; i < last; ++i) {
        const int64_t panel = i / parts, part = i % parts;
        const char* data = static_cast<const char*>(a.weight.data) + panel * q.bytes;
        for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) {
          const int64_t height = begin(t + 1) - begin(t);
          tile_of<Engine, bits>(height, q, data, words_of(t), sums);
          finish(a, row + begin(t), height, panel, sums);
        }
      }
    });
  }
};

template <typename Engine, int bits>
void product(const PackedLinearArgs& a) {
  const QuantizedPanel q(a.weight);
  constexpr int64_t kLeast = 8 * kTileRows<Engine, bits>;
  const int64_t fitting = kRoundBytes / (4 * q.blocks * block_words<Engine>(q, 1) + 1);
  const int64_t most = fitting > kLeast ? fitting : kLeast;
  const int64_t rounds = (a.m + most - 1) / most;
  for (int64_t i = 0; i < rounds; ++i) {
    const int64_t row = a.m * i / rounds;
    const Round<Engine, bits> round(a, q, row, a.m * (i + 1) / rounds - row);
    a.dtype == DType::f32 ? round.template quantize<float>() : round.template quantize<bf16>();
    round.multiply();
  }
}

template <typename Engine>
void product_of(const PackedLinearArgs& a) {
  a.weight.format == WeightFormat::int8 ? product<Engine, 8>(a) : product<Engine, 4>(a);
}

template <bool has_byte_products>
void product_by_engine(const PackedLinearArgs& a) {
  if constexpr (has_byte_products) {
    a.weight.activation_bits == 8 ? product_of<Bytes<1>>(a) : product_of<Bytes<2>>(a);
  } else {
    product_of<Pairs>(a);
  }
}

}  // namespace

void packed_linear_quantized(const PackedLinearArgs& args) {
  product_by_engine<kHasByteProducts>(args);
}

AFNEXT_REGISTER(packed_linear_quantized, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
