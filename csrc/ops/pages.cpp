#include "ops/pages.h"

#include <string>

namespace afnext {

void check_pages(const Check& check, const TensorView& tokens, const TensorView& k_pages,
                 const TensorView& v_pages, const TensorView* k_scales,
                 const TensorView* v_scales) {
  if ((k_pages.dtype == DType::i8 || k_pages.dtype == DType::f8e4m3) && k_pages.ndim == 4) {
    check.on_device(k_pages, "k_pages");
    check.require(k_pages.dtype == DType::i8 || k_pages.device == DeviceType::cuda,
                  "k_pages of float8_e4m3fn need a CUDA device: on the CPU take int8");
    check.require(k_scales != nullptr, "k_scales must be given for k_pages of 8 bits");
    check.require(v_scales != nullptr, "v_scales must be given for v_pages of 8 bits");
    const int64_t* shape = k_pages.shape;
    check.exact(*k_scales, "k_scales", DType::f32, {shape[0], shape[1], shape[2]});
    check.exact(*v_scales, "v_scales", DType::f32, {shape[0], shape[1], shape[2]});
  } else {
    check.floating_like(k_pages, "k_pages", tokens, 4);
    check.require(k_scales == nullptr, "k_scales are for k_pages of 8 bits");
    check.require(v_scales == nullptr, "v_scales are for v_pages of 8 bits");
  }
  check.contiguous(k_pages, "k_pages");
  check.same(v_pages, "v_pages", k_pages);
  check.contiguous(v_pages, "v_pages");
  check.require(k_pages.shape[2] > 0, "k_pages must have at least one slot a page");
}

void check_table(const Check& check, const TensorView& page_table, int64_t requests) {
  check.on_cpu(page_table, "page_table");
  if (page_table.dtype != DType::i32 || page_table.ndim != 2 || page_table.shape[0] != requests ||
      (page_table.shape[1] > 1 && page_table.stride[1] != 1)) {
    check.fail("page_table must be int32 [" + std::to_string(requests) +
               ", max_pages] with unit stride in its last dimension, got " + describe(page_table));
  }
}

void check_tokens(const Check& check, const TensorView& page_table, const TensorView& pages,
                  int64_t n, int64_t first, int64_t end, const char* what) {
  const int64_t slots = pages.shape[2], used = (end + slots - 1) / slots;
  if (end < 0 || used > page_table.shape[1]) {
    check.fail(std::string(what) + "[" + std::to_string(n) + "] = " + std::to_string(end) +
               " needs " + std::to_string(used) + " pages, page_table has " +
               std::to_string(page_table.shape[1]));
  }
  const int32_t* row = page_table.as<int32_t>() + n * page_table.stride[0];
  for (int64_t i = first / slots; i < used; ++i) {
    if (row[i] < 0 || row[i] >= pages.shape[0]) {
      check.fail("page_table[" + std::to_string(n) + "] holds page " + std::to_string(row[i]) +
                 " of a pool of " + std::to_string(pages.shape[0]));
    }
  }
}

namespace {

// times [T], on CUDA integers too, and inv_freq [R / 2], or neither.
void check_turn(const Check& check, const TensorView& tokens, const TensorView* times,
                const TensorView* inv_freq) {
  check.require((times == nullptr) == (inv_freq == nullptr), "rotation needs times and inv_freq");
  if (inv_freq == nullptr) return;
  const bool whole = times->dtype == DType::i32 || times->dtype == DType::i64;
  check.exact(*times, "rotation times",
              whole && tokens.device == DeviceType::cuda ? times->dtype : DType::f32,
              {tokens.shape[0]});
  check.exact(*inv_freq, "rotation inv_freq", DType::f32, {inv_freq->last()});
  if (2 * inv_freq->last() > tokens.last()) {
    check.fail("rotation inv_freq turns 2 x " + std::to_string(inv_freq->last()) + " of " +
               std::to_string(tokens.last()) + " channels");
  }
}

}  // namespace

void check_append(const Check& check, const PagedTokens& t) {
  const TensorView &k = t.k, &k_pages = t.k_pages;
  check.floating(k, "k", 3);
  check.same(t.v, "v", k);
  check_pages(check, k, k_pages, t.v_pages, t.k_scales, t.v_scales);
  if (k_pages.shape[1] != k.shape[1] || k_pages.shape[3] != k.shape[2]) {
    check.fail("k_pages must be [P, " + std::to_string(k.shape[1]) + ", slot, " +
               std::to_string(k.shape[2]) + "] for k " + describe(k) + ", got " +
               describe(k_pages));
  }
  check_turn(check, k, t.times, t.inv_freq);
  check.require(k.device != DeviceType::cuda || k.shape[2] <= kMaxHeadDim,
                "k must have a head dim of 1 to 256 on CUDA");
}

void check_attention(const Check& check, const TensorView& q, const TensorView& k_pages,
                     const TensorView& v_pages, const PagedAttentionOptions& options,
                     const TensorView& out, const TensorView& lse) {
  check.floating(q, "q", 3);
  if (q.shape[2] < 1 || q.shape[2] > kMaxHeadDim) {
    check.fail("q must have a head dim of 1 to 256, got " + describe(q));
  }
  check_pages(check, q, k_pages, v_pages, options.k_scales, options.v_scales);
  if (k_pages.shape[3] != q.shape[2] || k_pages.shape[1] < 1 ||
      q.shape[1] % k_pages.shape[1] != 0) {
    check.fail("k_pages must be [P, Hkv, slot, " + std::to_string(q.shape[2]) +
               "] with Hkv dividing " + std::to_string(q.shape[1]) + ", got " + describe(k_pages));
  }
  check_turn(check, q, options.times, options.inv_freq);
  check.require(options.window_left >= -1, "window must be >= -1 on its left");
  check.require(options.window_right >= -1, "window must be >= -1 on its right");
  check.exact(out, "out", q.dtype, {q.shape[0], q.shape[1], q.shape[2]});
  check.exact(lse, "lse", DType::f32, {q.shape[1], q.shape[0]});
}

void check_like_plan(const Check& check, const TensorView& k_pages, const TensorView& planned) {
  bool alike = k_pages.device == planned.device && k_pages.device_index == planned.device_index;
  for (int i = 0; i < 4; ++i) alike = alike && k_pages.shape[i] == planned.shape[i];
  if (!alike) {
    check.fail("k_pages must have the plan's shape and device, of " + describe(planned) + ", got " +
               describe(k_pages));
  }
}

}  // namespace afnext
