// Runs a kernel, right or with one fault, under one order of threads, and prints what came of it as
// JSON: kernels [NAME [FAULT]].
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "dependent.h"
#include "emulation/launch.h"
#include "instructions.h"
#include "mma_product.h"
#include "reduction.h"
#include "wgmma_product.h"

namespace {

using emulation::Options;
using emulation::Order;
using emulation::Report;

struct Outcome {
  Report report;
  double error = 0;  // the largest beside float64; NaN counts as infinite
};

struct Case {
  const char *kernel, *fault;
  std::function<Outcome(const Options&)> run;
};

class Random {
 public:
  std::vector<uint16_t> bf16(size_t count) {
    std::vector<uint16_t> values(count);
    for (uint16_t& value : values) {
      value = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal_(generator_)) >> 16);
    }
    return values;
  }
  std::vector<float> floats(size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal_(generator_);
    return values;
  }

 private:
  std::mt19937 generator_{1};
  std::normal_distribution<float> normal_;
};

double distance(const std::vector<float>& got, const std::vector<double>& exact) {
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double off = std::abs(static_cast<double>(got[i]) - exact[i]);
    worst = std::isnan(off) ? INFINITY : std::max(worst, off);
  }
  return worst;
}

double value(uint16_t bf16) { return std::bit_cast<float>(uint32_t{bf16} << 16); }

// a [m, k] times b: [n, k], or [k, n].
std::vector<double> product(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b, int m,
                            int n, int k, bool b_by_rows) {
  std::vector<double> c(static_cast<size_t>(m) * n);
  for (int r = 0; r < m; ++r) {
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int i = 0; i < k; ++i) {
        sum +=
            value(a[static_cast<size_t>(r) * k + i]) *
            value(b[b_by_rows ? static_cast<size_t>(i) * n + j : static_cast<size_t>(j) * k + i]);
      }
      c[static_cast<size_t>(r) * n + j] = sum;
    }
  }
  return c;
}

template <ReductionFault fault>
Outcome reduce(const Options& options) {
  constexpr int kBlocks = 3, kValues = 100;
  const auto x = Random().floats(kBlocks * kValues);
  std::vector<float> y(2 * kBlocks, NAN);  // one sum a block, and room for a fault
  std::vector<double> exact(kBlocks);
  for (size_t i = 0; i < x.size(); ++i) exact[i / kValues] += x[i];
  Outcome outcome;
  outcome.report = emulation::launch(options, reduction<fault>, dim3(kBlocks), dim3(128),
                                     sizeof(ReductionShared), x.data(), y.data(), kValues);
  y.resize(kBlocks);
  outcome.error = distance(y, exact);
  return outcome;
}

// `copied`: the host has put the second's operand where a kernel wrote before.
template <DependentFault fault, bool copied = false>
Outcome depend(const Options& options) {
  constexpr int kBlocks = 3, kValues = kBlocks * 128;
  const auto x = Random().floats(kValues);
  auto constant = x;
  std::vector<float> padded(16 + kValues + 16, NAN), y(kValues, NAN);
  float* const twice = padded.data() + 16;  // with lines of 64 bytes to itself
  std::vector<double> exact;
  for (const float value : x) exact.push_back(3.0 * value);
  emulation::Stream stream;
  const auto first = [&](float* out) {
    return emulation::run(options, dim3(kBlocks), dim3(128), 0, [&] { doubled(x.data(), out); },
                          {&stream, false});
  };
  first(twice);
  if (copied) {  // as kernels go on to write it
    stream.unfinished.add(constant.data(), kValues * sizeof(float));
    stream.forget(constant.data(), kValues * sizeof(float));
  }
  Outcome outcome;
  outcome.report =
      emulation::launch_early(options, stream, dependent<fault>, dim3(kBlocks), dim3(128),
                              sizeof(DependentShared), twice, constant.data(), y.data());
  outcome.error = distance(y, exact);
  return outcome;
}

template <MmaFault fault>
Outcome multiply(const Options& options) {
  constexpr int m = 100, n = 40, k = 256;
  Random random;
  const auto a = random.bf16(m * k), b = random.bf16(n * k);
  std::vector<float> c(m * n, NAN);
  Outcome outcome;
  outcome.report = emulation::launch(options, mma_product<fault>, dim3(2, 2), dim3(128),
                                     sizeof(MmaShared), a.data(), b.data(), c.data(), m, n, k);
  outcome.error = distance(c, product(a, b, m, n, k, false));
  return outcome;
}

template <WgmmaFault fault, Major major = Major::k, bool a_in_registers = false>
Outcome multiply_groups(const Options& options) {
  // The last rows and columns lie outside a and b: the engine brings zeros and stores nothing.
  constexpr int m = 200, n = 120, k = 384;
  using Shared = WgmmaShared;
  Random random;
  auto a = random.bf16(m * k), b = random.bf16(n * k);
  std::vector<float> c(m * n, NAN);
  const auto map = [](void* base, int bytes, uint64_t inner, uint64_t outer, uint32_t box,
                      uint32_t rows, emulation::Swizzle swizzle) {
    const uint64_t size[] = {inner, outer}, stride[] = {inner * static_cast<uint64_t>(bytes)};
    const uint32_t boxes[] = {box, rows};
    return emulation::make_tensor_map(base, bytes, 2, size, stride, boxes, swizzle);
  };
  using emulation::Swizzle;
  const auto map_a = map(a.data(), 2, k, m, Shared::kStep, Shared::kRows, Swizzle::bytes128);
  const auto map_b =
      major == Major::k
          ? map(b.data(), 2, k, n, Shared::kStep, Shared::kColumns, Swizzle::bytes128)
          : map(b.data(), 2, n, k, Shared::kColumns, Shared::kStep, Swizzle::bytes128);
  const auto map_c = map(c.data(), 4, n, m, 32, Shared::kRows, Swizzle::none);
  Outcome outcome;
  outcome.report = emulation::launch(options, wgmma_product<fault, major, a_in_registers>,
                                     dim3(2, 2), dim3(384), sizeof(Shared), map_a, map_b, map_c, k);
  outcome.error = distance(c, product(a, b, m, n, k, major == Major::n));
  return outcome;
}

// Kernels that count what is wrong.
template <auto kernel, size_t shared = 0, unsigned threads = 32>
Outcome count(const Options& options) {
  int wrong = 0;
  Outcome outcome;
  outcome.report = emulation::launch(options, kernel, dim3(2), dim3(threads), shared, &wrong);
  outcome.error = wrong;
  return outcome;
}

template <emulation::Swizzle swizzle, bool by_rows>
Outcome tiles(const Options& options) {
  return count<warpgroup_tiles<swizzle, by_rows>, sizeof(TileShared), 128>(options);
}

template <emulation::Swizzle swizzle>
Outcome box(const Options& options) {
  alignas(16) uint16_t tensor[2][5][40], line[64], line_out[64] = {};
  for (int i = 0; i < 400; ++i) (&tensor[0][0][0])[i] = static_cast<uint16_t>(i);
  for (int i = 0; i < 64; ++i) line[i] = static_cast<uint16_t>(i * i);
  const auto pitch = static_cast<uint32_t>(
      swizzle == emulation::Swizzle::none ? 64 : 8 << static_cast<int>(swizzle));
  const uint64_t size[] = {40, 5, 2}, strides[] = {80, 400};
  const uint32_t boxes_of[] = {pitch, 4, 2};
  const auto map = emulation::make_tensor_map(tensor, 2, 3, size, strides, boxes_of, swizzle);
  int wrong = 0;
  Outcome outcome;
  outcome.report = emulation::launch(options, boxes<swizzle>, dim3(1), dim3(64), sizeof(BoxShared),
                                     map, line, line_out, &wrong);
  outcome.error = wrong + (std::memcmp(line, line_out, sizeof(line)) != 0 ? 1 : 0);
  return outcome;
}

using emulation::Element;
using emulation::Swizzle;

const std::vector<Case> kCases = {
    {"lanes", "none", count<lanes, 0, 64>},
    {"matrices", "none", count<matrices, sizeof(MatrixShared)>},
    {"products_bf16", "none", count<products<Element::bf16>>},
    {"products_f16", "none", count<products<Element::f16>>},
    {"products_s8", "none", count<products<Element::s8>>},
    {"products_e4m3", "none", count<products<Element::e4m3>>},
    {"tiles_plain", "none", tiles<Swizzle::none, false>},
    {"tiles_32", "none", tiles<Swizzle::bytes32, false>},
    {"tiles_64", "none", tiles<Swizzle::bytes64, false>},
    {"tiles_128", "none", tiles<Swizzle::bytes128, false>},
    {"tiles_plain_by_rows", "none", tiles<Swizzle::none, true>},
    {"tiles_32_by_rows", "none", tiles<Swizzle::bytes32, true>},
    {"tiles_64_by_rows", "none", tiles<Swizzle::bytes64, true>},
    {"tiles_128_by_rows", "none", tiles<Swizzle::bytes128, true>},
    {"boxes_plain", "none", box<Swizzle::none>},
    {"boxes_32", "none", box<Swizzle::bytes32>},
    {"boxes_64", "none", box<Swizzle::bytes64>},
    {"boxes_128", "none", box<Swizzle::bytes128>},
    {"bulk_sums", "none", count<bulk_sums, sizeof(SumShared)>},
    {"named_barriers", "none", count<named_barriers, sizeof(RingShared), 64>},
    {"named_barriers", "beyond_the_last", count<a_barrier_too_many, 0, 64>},
    {"dependent", "none", depend<DependentFault::none>},
    {"dependent_on_a_copy", "none", depend<DependentFault::none, true>},
    {"dependent", "no_wait", depend<DependentFault::no_wait>},
    {"dependent", "no_wait_in_a_block", depend<DependentFault::no_wait_in_a_block>},
    {"dependent", "no_barrier", depend<DependentFault::no_barrier>},
    {"dependent", "reads_too_soon", depend<DependentFault::reads_too_soon>},
    {"dependent", "copies_too_soon", depend<DependentFault::copies_too_soon>},
    {"dependent", "writes_too_soon", depend<DependentFault::writes_too_soon>},
    {"reduction", "none", reduce<ReductionFault::none>},
    {"reduction", "no_first_barrier", reduce<ReductionFault::no_first_barrier>},
    {"reduction", "no_second_barrier", reduce<ReductionFault::no_second_barrier>},
    {"reduction", "barrier_in_a_branch", reduce<ReductionFault::barrier_in_a_branch>},
    {"reduction", "shuffle_in_a_branch", reduce<ReductionFault::shuffle_in_a_branch>},
    {"reduction", "reads_unwritten", reduce<ReductionFault::reads_unwritten>},
    {"reduction", "past_the_end", reduce<ReductionFault::past_the_end>},
    {"reduction", "early_exit", reduce<ReductionFault::early_exit>},
    {"reduction", "no_warp_sync", reduce<ReductionFault::no_warp_sync>},
    {"mma_product", "none", multiply<MmaFault::none>},
    {"mma_product", "no_wait", multiply<MmaFault::no_wait>},
    {"mma_product", "no_barrier_after_wait", multiply<MmaFault::no_barrier_after_wait>},
    {"mma_product", "no_barrier_at_end", multiply<MmaFault::no_barrier_at_end>},
    {"mma_product", "unaligned", multiply<MmaFault::unaligned>},
    {"mma_product", "no_swizzle", multiply<MmaFault::no_swizzle>},
    {"mma_product", "reads_past_a", multiply<MmaFault::reads_past_a>},
    {"wgmma_product", "none", multiply_groups<WgmmaFault::none>},
    {"wgmma_product", "no_wait_for_empty", multiply_groups<WgmmaFault::no_wait_for_empty>},
    {"wgmma_product", "no_wait_for_full", multiply_groups<WgmmaFault::no_wait_for_full>},
    {"wgmma_product", "released_too_soon", multiply_groups<WgmmaFault::released_too_soon>},
    {"wgmma_product", "no_wgmma_fence", multiply_groups<WgmmaFault::no_wgmma_fence>},
    {"wgmma_product", "no_wgmma_wait", multiply_groups<WgmmaFault::no_wgmma_wait>},
    {"wgmma_product", "no_proxy_fence", multiply_groups<WgmmaFault::no_proxy_fence>},
    {"wgmma_product", "no_store_wait", multiply_groups<WgmmaFault::no_store_wait>},
    {"wgmma_product", "few_bytes_expected", multiply_groups<WgmmaFault::few_bytes_expected>},
    {"wgmma_product", "many_arrivals", multiply_groups<WgmmaFault::many_arrivals>},
    {"wgmma_product", "not_initialised", multiply_groups<WgmmaFault::not_initialised>},
    {"wgmma_product_b_by_rows", "none", multiply_groups<WgmmaFault::none, Major::n>},
    {"wgmma_product_a_in_registers", "none", multiply_groups<WgmmaFault::none, Major::k, true>},
    {"wgmma_product_a_in_registers", "registers_reused",
     multiply_groups<WgmmaFault::registers_reused, Major::k, true>},
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

void run(const Case& c, const char* order_name, const Options& options) {
  std::string error;
  Outcome outcome;
  try {
    outcome = c.run(options);
  } catch (const std::exception& e) {
    error = e.what();
  }
  const auto& n = outcome.report.counters;
  std::string races;
  for (const auto& race : outcome.report.races) {
    races += (races.empty() ? "" : ", ") + quoted(race.text());
  }
  std::printf(
      "{\"kernel\": %s, \"fault\": %s, \"order\": %s, \"error\": %s, \"races\": [%s], "
      "\"distance\": %.9g, \"bank_conflicts\": %llu, \"shared_accesses\": %llu}\n",
      quoted(c.kernel).c_str(), quoted(c.fault).c_str(), quoted(order_name).c_str(),
      quoted(error).c_str(), races.c_str(), std::isfinite(outcome.error) ? outcome.error : 1e30,
      static_cast<unsigned long long>(n.bank_conflicts),
      static_cast<unsigned long long>(n.shared_accesses));
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  struct Named {
    const char* name;
    Order order;
    uint64_t seed;
    int os_threads;
  };
  constexpr Named kOrders[] = {{"first in", Order::first_in, 1, 1},
                               {"last in", Order::last_in, 1, 1},
                               {"random 1", Order::random, 1, 1},
                               {"random 2", Order::random, 2, 1},
                               {"two OS threads", Order::first_in, 1, 2}};
  for (const Case& c : kCases) {
    if (count > 1 && std::strcmp(arguments[1], c.kernel) != 0) continue;
    if (count > 2 && std::strcmp(arguments[2], c.fault) != 0) continue;
    for (const Named& named : kOrders) {
      Options options;
      options.order = named.order, options.seed = named.seed;
      options.os_threads = named.os_threads;
      run(c, named.name, options);
    }
  }
}
