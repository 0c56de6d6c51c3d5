// A program for a bare machine with AMX: runs the calls that the test wrote into its memory through
// the library's own interface, and prints their results and what the tiles were left in.
//
// There is no system: what the library takes from one is below, the rest is never reached.
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <new>

#include "afnext/attention.h"
#include "afnext/packed_linear.h"
#include "afnext/paged_attention.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace {

constexpr uintptr_t kCalls = 0x500000, kHeap = 0x1000000;

uintptr_t g_heap = kHeap;
bool g_may_use_tiles = true;

void* allocate(size_t bytes) {
  const uintptr_t block = g_heap;
  g_heap = (g_heap + bytes + 63) / 64 * 64;
  return reinterpret_cast<void*>(block);
}

void out_byte(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

// The printer's file is the test's.
void print(const void* data, size_t bytes) {
  constexpr uint16_t kData = 0x378, kControl = 0x37a;
  constexpr uint8_t kSelected = 0x0c, kStrobe = 0x01;
  for (size_t i = 0; i < bytes; ++i) {
    out_byte(kData, static_cast<const uint8_t*>(data)[i]);
    out_byte(kControl, kSelected | kStrobe);
    out_byte(kControl, kSelected);
  }
}

[[noreturn]] void power_off() {
  for (const char* c = "Shutdown"; *c != '\0'; ++c) out_byte(0x8900, static_cast<uint8_t>(*c));
  for (;;) __asm__ volatile("hlt");
}

}  // namespace

// --- what a system would give
// ---------------------------------------------------------------------
extern "C" {

void* memcpy(void* to, const void* from, size_t n) {
  void* result = to;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
  return result;
}
void* memset(void* to, int value, size_t n) {
  void* result = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
  return result;
}
void* memmove(void* to, const void* from, size_t n) {
  if (to <= from) return memcpy(to, from, n);
  auto* last = static_cast<char*>(to) + n;
  auto* source = static_cast<const char*>(from) + n;
  while (n-- > 0) *--last = *--source;
  return to;
}
char* getenv(const char*) { return nullptr; }
[[noreturn]] void abort() { power_off(); }
[[noreturn]] void __cxa_pure_virtual() { power_off(); }

// Linux answers a request for the tiles.
long syscall(long number, ...) {
  va_list arguments;
  va_start(arguments, number);
  const int code = va_arg(arguments, int), state = va_arg(arguments, int);
  va_end(arguments);
  return number == 158 && code == 0x1023 && state == 18 && g_may_use_tiles ? 0 : -1;
}

// A static that is made anew each time: detection can be asked twice.
int __cxa_guard_acquire(int64_t*) { return 1; }
void __cxa_guard_release(int64_t*) {}

// ln(m * 2^e) in float64, by the series of atanh.
float logf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 23) - 127;
  bits = (bits & 0x7fffff) | 0x3f800000;
  memcpy(&x, &bits, sizeof(bits));
  const double t = (x - 1.0) / (x + 1.0);
  double sum = 0, power = t;
  for (int i = 1; i < 40; i += 2, power *= t * t) sum += power / i;
  return static_cast<float>(2 * sum + exponent * 0.69314718055994531);
}

}  // extern "C"

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void operator delete(void*) noexcept {}
void operator delete(void*, size_t) noexcept {}
void operator delete(void*, const std::nothrow_t&) noexcept {}
void operator delete[](void*) noexcept {}

namespace afnext::cpu {

int num_threads() { return 1; }
void* scratch(int slot, size_t bytes) {
  static struct {
    void* data;
    size_t bytes;
  } blocks[kScratchSlots];
  if (blocks[slot].bytes < bytes) blocks[slot] = {allocate(bytes), bytes};
  return blocks[slot].data;
}
// In two pieces, so that tiles are configured and released more than once a call.
void detail::run(int64_t count, int64_t, Body body, const void* context) {
  if (count > 1) body(context, 0, count / 2);
  body(context, count / 2, count);
}

// Naming them links them; their constructors then enter them in their tables.
namespace amx {
extern KernelRegistration attention_tiles_registration, packed_linear_tiles_registration,
    packed_linear_quantized_tiles_registration;
}
namespace avx512 {
extern KernelRegistration packed_linear_quantized_registration;
}
namespace avx512_bf16 {
extern KernelRegistration attention_registration, packed_linear_registration;
}
KernelList compiled_kernels() {
  static const Kernel kernels[] = {
      {"attention_tiles", Isa::amx, &amx::attention_tiles_registration},
      {"packed_linear_tiles", Isa::amx, &amx::packed_linear_tiles_registration},
      {"packed_linear_quantized_tiles", Isa::amx, &amx::packed_linear_quantized_tiles_registration},
      {"packed_linear_quantized", Isa::avx512, &avx512::packed_linear_quantized_registration},
      {"packed_linear", Isa::avx512_bf16, &avx512_bf16::packed_linear_registration},
      {"attention", Isa::avx512_bf16, &avx512_bf16::attention_registration},
  };
  return {kernels, 6};
}

}  // namespace afnext::cpu

// --- the calls
// ------------------------------------------------------------------------------------
namespace {

using afnext::TensorView;

// As test_amx.py packs it; offsets are from the first call, 0 is a null tensor.
struct Call {
  int64_t op;  // 0: no more
  int64_t dtype;
  int64_t tensor[4];  // x, weight, bias, out; q, k, v, out
  int64_t size[4];    // m, n, k, gate_up; tokens, heads, kv_heads, dim
  int64_t option[4];  // format, group, zero_points, activation_bits; causal, slots, keys, 0
};
enum Op : int64_t { kEnd, kDetect, kLinear, kAttention, kPagedAttention };

void* at(int64_t offset) {
  return reinterpret_cast<void*>(kCalls + static_cast<uintptr_t>(offset));
}

TensorView view(void* data, afnext::DType dtype, std::initializer_list<int64_t> shape) {
  TensorView t;
  t.data = data, t.dtype = dtype, t.ndim = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    t.shape[i] = shape.begin()[i], t.stride[i] = stride;
    stride *= t.shape[i];
  }
  return t;
}

void run_linear(const Call& c) {
  const auto dtype = static_cast<afnext::DType>(c.dtype);
  const int64_t m = c.size[0], n = c.size[1], k = c.size[2];
  afnext::PackedView weight;
  weight.format = static_cast<afnext::WeightFormat>(c.option[0]);
  weight.n = n, weight.k = k, weight.group = c.option[1], weight.zero_points = c.option[2] != 0;
  weight.activation_bits = static_cast<int>(c.option[3]), weight.gate_up = c.size[3] != 0;
  weight.data = at(c.tensor[1]);
  const TensorView bias = view(at(c.tensor[2]), dtype, {n});
  const TensorView out = view(at(c.tensor[3]), dtype, {m, weight.columns()});
  afnext::packed_linear(
      view(at(c.tensor[0]), dtype, {m, k}), weight, c.tensor[2] != 0 ? &bias : nullptr, nullptr,
      weight.gate_up ? afnext::Activation::silu_mul : afnext::Activation::none, out);
  print(out.data, static_cast<size_t>(out.numel() * (dtype == afnext::DType::f32 ? 4 : 2)));
}

struct AttentionCall {
  TensorView q, out, lse;
  double scale;

  explicit AttentionCall(const Call& c)
      : q(view(at(c.tensor[0]), static_cast<afnext::DType>(c.dtype),
               {c.size[0], c.size[1], c.size[3]})),
        out(view(at(c.tensor[3]), q.dtype, {c.size[0], c.size[1], c.size[3]})),
        lse(view(allocate(static_cast<size_t>(c.size[0] * c.size[1]) * 4), afnext::DType::f32,
                 {c.size[1], c.size[0]})),
        scale(1 / __builtin_sqrt(static_cast<double>(c.size[3]))) {}

  void print_results() const {
    const size_t size = q.dtype == afnext::DType::f32 ? 4 : 2;
    print(out.data, static_cast<size_t>(out.numel()) * size);
    print(lse.data, static_cast<size_t>(lse.numel()) * 4);
  }
};

void run_attention(const Call& c) {
  const AttentionCall call(c);
  const int64_t tokens = c.size[0], kv_heads = c.size[2], dim = c.size[3];
  afnext::AttentionOptions options{};
  options.causal = c.option[0] != 0;
  options.window_left = options.window_right = -1;
  options.scale = call.scale;
  afnext::attention(call.q, view(at(c.tensor[1]), call.q.dtype, {tokens, kv_heads, dim}),
                    view(at(c.tensor[2]), call.q.dtype, {tokens, kv_heads, dim}), options, call.out,
                    call.lse);
  call.print_results();
}

// The same over pages, the last one first.
void run_paged_attention(const Call& c) {
  const AttentionCall call(c);
  const int64_t kv_heads = c.size[2], dim = c.size[3], slots = c.option[1], keys = c.option[2];
  const int64_t pages = (keys + slots - 1) / slots;
  auto* table = static_cast<int32_t*>(allocate(static_cast<size_t>(pages) * 4));
  for (int64_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(pages - 1 - i);
  int32_t ends[2] = {0, static_cast<int32_t>(c.size[0])}, length = static_cast<int32_t>(keys);
  afnext::PagedAttentionOptions options{};
  options.causal = c.option[0] != 0;
  options.window_left = options.window_right = -1;
  options.scale = call.scale;
  afnext::paged_attention(
      call.q, view(at(c.tensor[1]), call.q.dtype, {pages, kv_heads, slots, dim}),
      view(at(c.tensor[2]), call.q.dtype, {pages, kv_heads, slots, dim}),
      view(table, afnext::DType::i32, {1, pages}), view(ends, afnext::DType::i32, {2}),
      view(&length, afnext::DType::i32, {1}), options, call.out, call.lse);
  call.print_results();
}

// The level, as detected with the tiles granted and refused.
void run_detect() {
  for (const bool granted : {false, true}) {
    g_may_use_tiles = granted;
    const int64_t level = static_cast<int64_t>(afnext::cpu::detected_isa());
    print(&level, sizeof(level));
  }
}

// Zero where no tile is configured.
void print_tiles() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  const int64_t configured = low >> 17 & 1;
  print(&configured, sizeof(configured));
}

using Constructor = void (*)();
extern "C" Constructor first_constructor[], last_constructor[];
extern "C" char first_zero[], last_zero[];

extern "C" [[gnu::section(".text.start")]] void start() {
  memset(first_zero, 0, static_cast<size_t>(last_zero - first_zero));
  const volatile int64_t one = 1;
  const int64_t quotient = one / one;
  print(&quotient, sizeof(quotient));
  for (Constructor* c = first_constructor; c != last_constructor; ++c) (*c)();
  for (const Call* c = static_cast<const Call*>(at(0)); c->op != kEnd; ++c) {
    if (c->op == kDetect) run_detect();
    if (c->op == kLinear) run_linear(*c);
    if (c->op == kAttention) run_attention(*c);
    if (c->op == kPagedAttention) run_paged_attention(*c);
    print_tiles();
  }
  power_off();
}

}  // namespace
