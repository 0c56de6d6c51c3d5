#include "cpu/peaks.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/multiply_add.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kBlock = 4096;          // bytes that one step of reading takes
constexpr int64_t kPrefetchBytes = 4096;  // ahead of it

uint64_t read(const char* data, int64_t bytes) {
  constexpr int vectors = 8, size = vectors * static_cast<int>(sizeof(U32));
  U32 seen[vectors] = {};
  int64_t i = 0;
  for (; i + size <= bytes; i += size) {
    for (int line = 0; line < size; line += 64)
      __builtin_prefetch(data + i + kPrefetchBytes + line, 0, 0);
    for (int v = 0; v < vectors; ++v) {
      U32 part;
      std::memcpy(&part, data + i + v * sizeof(part), sizeof(part));
      seen[v] ^= part;
    }
  }
  uint64_t total = 0;
  for (int v = 1; v < vectors; ++v) seen[0] ^= seen[v];
  for (int lane = 0; lane < kLanes; ++lane) total += seen[0][lane];
  for (; i < bytes; ++i) total += static_cast<unsigned char>(data[i]);
  return total;
}

// Rows x columns of sums that depend on nothing but their own last value: enough of them to hide
// an instruction's latency, few enough for the registers.
constexpr int kRows = kLanes == 16 ? 4 : 3, kColumns = 3;

template <typename Type>
void multiply_add_steps(const float* operands, int64_t steps) {
  using Operand = typename Type::Operand;
  Operand a[kRows], b[kColumns];
  typename Type::Sum sum[kRows][kColumns] = {};
  for (int r = 0; r < kRows; ++r) a[r] = Type::operand(operands + r);
  for (int c = 0; c < kColumns; ++c) b[c] = Type::operand(operands + kRows + c);
  for (int64_t i = 0; i < steps; ++i) {
    for (int r = 0; r < kRows; ++r) {
      a[r] = bit_cast<Operand>(in_register(bit_cast<F32>(a[r])));  // as if it were another one
      for (int c = 0; c < kColumns; ++c) sum[r][c] = Type::multiply_add(a[r], b[c], sum[r][c]);
    }
  }
  F32 all = {};
  for (auto& row : sum) {
    for (auto& s : row) all += bit_cast<F32>(s);
  }
  store(scratch<float>(0, kLanes), all);  // or the compiler would see that nobody asks
}

template <typename Type>
void arithmetic(const PeakArithmetic& a) {
  parallel_for(num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      multiply_add_steps<Type>(a.operands, a.steps);
      a.operations->fetch_add(2.0 * a.steps * kRows * kColumns * Type::kProducts);
    }
  });
}

void read_all(const PeakRead& a) {
  const char* data = static_cast<const char*>(a.data);
  parallel_for((a.bytes + kBlock - 1) / kBlock, 256, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock, last = end * kBlock < a.bytes ? end * kBlock : a.bytes;
    a.seen->fetch_add(read(data + first, last - first), std::memory_order_relaxed);
  });
}

void compute(const PeakArithmetic& a) {
  switch (a.dtype) {
    case DType::bf16:
      return arithmetic<MultiplyAdd<bf16>>(a);
    case DType::i8:
      return arithmetic<MultiplyAdd<int8_t>>(a);
    default:
      return arithmetic<MultiplyAdd<float>>(a);
  }
}

}  // namespace

void peaks(const PeaksArgs& args) {
  if (args.read != nullptr) read_all(*args.read);
  if (args.arithmetic != nullptr) compute(*args.arithmetic);
}

AFNEXT_REGISTER(peaks, PeaksArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
