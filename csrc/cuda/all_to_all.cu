// Rows of D elements between [T, H, D] and a contiguous [T, heads of p, D] for each rank p.
//
// Bytes: a read and a write of every row. A group of lanes holds a row, 16 bytes a lane (16 lanes
// for D = 128 in 16 bits) and kRows of them at a time, all loaded before the first is stored: 32
// bytes in flight a thread. 22 to 26 registers to pack, 32 to 48 to unpack, no shared memory: 8
// blocks of 256 threads an SM and 64 KB in flight, five and 40 KB. Rows of a token follow one
// another over the groups of a block, so that reads are whole tokens, and writes are runs of a
// rank's heads: 7 heads of 256 bytes go to each of 4 ranks, over NVLink too, where writes need no
// answer while reads would wait for a round trip. The tables, 3.6 KB, are the kernel's parameters:
// no copy to the device comes before the launch.
#include "cuda/all_to_all.h"
#include "cuda/arch/call.h"
#include "cuda/dispatch.h"
#include "cuda/vector.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 2;

struct Params {
  void* x;                            // [tokens, heads, dim]
  int64_t token_stride, head_stride;  // elements
  unsigned rows;                      // that are written
  int dim;
  int log_lanes;  // of the lanes that hold a row
  HeadPlaces table;
};
static_assert(sizeof(Params) <= 4096);

template <typename T>
AFNEXT_DEVICE T* row_at(const Params& p, int64_t token, int place) {
  const int peer = p.table.peer[place], begin = p.table.offset[peer];
  const int heads = p.table.offset[peer + 1] - begin;
  return reinterpret_cast<T*>(p.table.base[peer]) + (token * heads + place - begin) * p.dim;
}

// The group's rows of its block: kRows, as many apart as there are groups.
struct Group {
  int lane, lanes, count;
  unsigned first;

  AFNEXT_DEVICE explicit Group(const Params& p)
      : lane(static_cast<int>(threadIdx.x) & ((1 << p.log_lanes) - 1)),
        lanes(1 << p.log_lanes),
        count(kThreads >> p.log_lanes),
        first(blockIdx.x * count * kRows + (threadIdx.x >> p.log_lanes)) {}
};

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    all_to_all_pack_kernel(const __grid_constant__ Params p) {
  const Group group(p);
  const T* from[kRows];
  T* to[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const unsigned row = group.first + r * group.count;
    if (row < p.rows) {
      const int64_t token = row / static_cast<unsigned>(p.table.places);
      const int place = static_cast<int>(row - token * p.table.places);
      from[r] =
          static_cast<const T*>(p.x) + token * p.token_stride + p.table.head[place] * p.head_stride;
      to[r] = row_at<T>(p, token, place);
    }
  }
#pragma unroll 1
  for (int column = group.lane * kVector; column < p.dim; column += group.lanes * kVector) {
    Vector<T, kVector> part[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (group.first + r * group.count < p.rows) part[r] = load<kVector>(from[r] + column);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (group.first + r * group.count < p.rows) store(to[r] + column, part[r]);
    }
  }
}

// Adds up a head's places from the second on: where ranks share heads.
template <typename T, int kVector>
AFNEXT_DEVICE void add_places(const Params& p, int64_t token, int head, int column,
                              Vector<T, kVector>* part) {
  const int begin = p.table.first[head], end = p.table.first[head + 1];
  if (end - begin == 1) return;
  float sum[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] = begin < end ? arch::to_float(part->at[i]) : 0.0f;
#pragma unroll 1
  for (int k = begin + 1; k < end; ++k) {
    const auto other = load<kVector>(row_at<T>(p, token, p.table.by_head[k]) + column);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] += arch::to_float(other.at[i]);
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) part->at[i] = arch::rounded<T>(sum[i]);
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    all_to_all_unpack_kernel(const __grid_constant__ Params p) {
  const Group group(p);
  int64_t token[kRows];
  int head[kRows];
  const T* from[kRows];  // null where no rank has the head
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const unsigned row = group.first + r * group.count;
    from[r] = nullptr;
    if (row < p.rows) {
      token[r] = row / static_cast<unsigned>(p.table.heads);
      head[r] = static_cast<int>(row - token[r] * p.table.heads);
      const int first = p.table.first[head[r]];
      if (first < p.table.first[head[r] + 1])
        from[r] = row_at<T>(p, token[r], p.table.by_head[first]);
    }
  }
#pragma unroll 1
  for (int column = group.lane * kVector; column < p.dim; column += group.lanes * kVector) {
    Vector<T, kVector> part[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      part[r] = {};
      if (from[r] != nullptr) part[r] = load<kVector>(from[r] + column);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (group.first + r * group.count < p.rows) {
        add_places<T, kVector>(p, token[r], head[r], column, &part[r]);
        store(static_cast<T*>(p.x) + token[r] * p.token_stride + head[r] * p.head_stride + column,
              part[r]);
      }
    }
  }
}

template <bool kUnpack, typename T, int kVector>
void run(const Call& call, Params p) {
  const int vectors = (p.dim + kVector - 1) / kVector;
  while (p.log_lanes < 5 && 1 << p.log_lanes < vectors) ++p.log_lanes;
  const int64_t block = (kThreads >> p.log_lanes) * kRows;
  const dim3 grid(static_cast<unsigned>((p.rows + block - 1) / block));
  if constexpr (kUnpack) {
    call.launch<all_to_all_unpack_kernel<T, kVector>>(grid, dim3(kThreads), 0, p);
  } else {
    call.launch<all_to_all_pack_kernel<T, kVector>>(grid, dim3(kThreads), 0, p);
  }
}

template <bool kUnpack>
void move(const char* op, const TensorView& x, const HeadPlaces& table, Stream stream) {
  const Call call(op, x, stream);
  const int64_t tokens = x.shape[0];
  const Params p{x.data,
                 x.stride[0],
                 x.stride[1],
                 static_cast<unsigned>(tokens * (kUnpack ? table.heads : table.places)),
                 static_cast<int>(x.shape[2]),
                 0,
                 table};
  bool wide = rows_align(x);
  for (int peer = 0; peer < table.peers; ++peer) {
    wide = wide && reinterpret_cast<uintptr_t>(table.base[peer]) % 16 == 0;
  }
  with_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      run<kUnpack, T, kWidest<T>>(call, p);
    } else {
      run<kUnpack, T, 1>(call, p);
    }
  });
}

}  // namespace

void all_to_all_pack(const TensorView& x, const HeadPlaces& table, Stream stream) {
  move<false>("all_to_all_pack", x, table, stream);
}

void all_to_all_unpack(const HeadPlaces& table, const TensorView& out, Stream stream) {
  move<true>("all_to_all_unpack", out, table, stream);
}

}  // namespace afnext::cuda
