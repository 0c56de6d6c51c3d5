#include "ops/pages.h"

#include <string>

namespace afnext {

void check_pages(const Check& check, const TensorView& tokens, const TensorView& k_pages,
                 const TensorView& v_pages, const TensorView* k_scales, const TensorView* v_scales,
                 const TensorView& page_table, int64_t requests) {
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

int64_t check_turn(const Check& check, const TensorView& tokens, const TensorView* times,
                   const TensorView* inv_freq) {
  check.require((times == nullptr) == (inv_freq == nullptr), "rotation needs times and inv_freq");
  if (inv_freq == nullptr) return 0;
  check.exact(*times, "rotation times", DType::f32, {tokens.shape[0]});
  check.exact(*inv_freq, "rotation inv_freq", DType::f32, {inv_freq->last()});
  if (2 * inv_freq->last() > tokens.last()) {
    check.fail("rotation inv_freq turns 2 x " + std::to_string(inv_freq->last()) + " of " +
               std::to_string(tokens.last()) + " channels");
  }
  return inv_freq->last();
}

}  // namespace afnext
