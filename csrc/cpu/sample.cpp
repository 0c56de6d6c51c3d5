#include "cpu/sample.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/vec.h"
#include "ops/sample_units.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

using namespace sampling;

struct Token {
  uint32_t key;
  int32_t id;
};
struct Nearer {
  bool operator()(Token a, Token b) const { return a.key != b.key ? a.key < b.key : a.id < b.id; }
};

// Tokens of one key, in the order of their ids, and what lies before them.
struct Group {
  const Token* tokens;
  int64_t count;
  uint64_t mass_before, mass;
};

// One row, ordered as far as it is asked for: bins of neighbouring keys, sorted inside on demand.
class Row {
 public:
  template <typename T>
  Row(const T* logits, int64_t size, float temperature)
      : size_(size),
        distance_(scratch<float>(0, size)),
        exp_(scratch<float>(1, size)),
        counts_(scratch<uint32_t>(2, kBins)),
        masses_(scratch<uint64_t>(3, kBins)),
        sorted_(scratch<Token>(4, size)) {
    F32 most = broadcast(-__builtin_inff());
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) most = max(load(logits + i), most);
    largest_ = largest(most);
    for (; i < size; ++i) largest_ = std::max(largest_, to_float(logits[i]));
    const float by = 1.0f / temperature;
    for (i = 0; i < size; i += kLanes) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, size - i));
      const F32 x = load_n(logits + i, n);
      // Infinite logits: those at the largest are at no distance.
      const F32 away = select(x == largest_, F32{}, (largest_ - x) * by);
      store_n(distance_ + i, away, n);
      store_n(exp_ + i, exp_nonpositive(-away), n);
    }
    std::fill_n(counts_, kBins, 0);
    std::fill_n(masses_, kBins, 0);
    for (i = 0; i < size; ++i) {
      if (!(distance_[i] < kFarthest)) continue;  // nor is NaN
      ++counts_[key(i) >> kFirstShift];
      masses_[key(i) >> kFirstShift] += mass(i);
    }
    for (int bin = 0; bin < kBins; ++bin) total_ += masses_[bin], count_ += counts_[bin];
  }

  uint64_t total() const { return total_; }
  int64_t count() const { return count_; }
  float logprob(int64_t id) const {
    return -distance_[id] - std::log(static_cast<float>(total_) / kMassUnits);
  }
  // The first token at no distance: of equal logits, where keys may agree of unequal ones.
  int64_t nearest() const { return std::find(distance_, distance_ + size_, 0.0f) - distance_; }

  // The group that holds the `goal`-th token, or unit of mass, from the nearest on; from 1 on.
  Group by_count(int64_t goal) const { return find<true>(static_cast<uint64_t>(goal)); }
  Group by_mass(uint64_t goal) const { return find<false>(goal); }
  // Of the tokens up to a key.
  uint64_t mass_up_to(uint32_t last) const {
    uint64_t sum = 0;
    for (int64_t i = 0; i < size_; ++i) {
      if (distance_[i] < kFarthest && key(i) <= last) sum += mass(i);
    }
    return sum;
  }

 private:
  uint32_t key(int64_t i) const { return static_cast<uint32_t>(distance_[i] * kKeyUnits); }
  uint64_t mass(int64_t i) const { return static_cast<uint64_t>(exp_[i] * kMassUnits); }

  template <bool kCount>
  Group find(uint64_t goal) const {
    uint64_t before = 0, mass_before = 0;
    uint32_t bin = 0;
    for (;; ++bin) {
      const uint64_t inside = kCount ? counts_[bin] : masses_[bin];
      if (before + inside >= goal) break;
      before += inside;
      mass_before += masses_[bin];
    }
    int64_t n = 0;
    for (int64_t i = 0; i < size_; ++i) {
      if (distance_[i] < kFarthest && key(i) >> kFirstShift == bin) {
        sorted_[n++] = {key(i), static_cast<int32_t>(i)};
      }
    }
    std::sort(sorted_, sorted_ + n, Nearer{});
    for (int64_t first = 0;;) {
      int64_t end = first;
      uint64_t inside = 0;
      for (; end < n && sorted_[end].key == sorted_[first].key; ++end)
        inside += mass(sorted_[end].id);
      before += kCount ? static_cast<uint64_t>(end - first) : inside;
      if (before >= goal) return {sorted_ + first, end - first, mass_before, inside};
      mass_before += inside;
      first = end;
    }
  }

  int64_t size_;
  float *distance_, *exp_;
  uint32_t* counts_;
  uint64_t* masses_;
  Token* sorted_;
  float largest_;
  uint64_t total_ = 0;
  int64_t count_ = 0;
};

template <typename T>
void draw(const SampleArgs& a, int64_t r) {
  const bool greedy = !(a.temperature[r] > 0.0f);
  const Row row(static_cast<const T*>(a.logits) + r * a.stride, a.vocabulary,
                greedy ? 1.0f : a.temperature[r]);
  if (row.count() == 0) {  // a row of NaN
    a.tokens[r] = 0;
    a.logprobs[r] = __builtin_nanf("");
    return;
  }
  if (greedy) {
    a.tokens[r] = row.nearest();
    a.logprobs[r] = row.logprob(a.tokens[r]);
    return;
  }
  uint64_t total = row.total();
  uint32_t last = UINT32_MAX;  // key that stays
  const auto cut = [&](const Group& group) {
    total = group.mass_before + group.mass;
    last = group.tokens->key;
  };
  if (a.top_k[r] > 0 && a.top_k[r] < row.count()) cut(row.by_count(a.top_k[r]));
  if (a.top_p[r] < 1.0f) {
    const double goal = std::ceil(static_cast<double>(a.top_p[r]) * static_cast<double>(total));
    cut(row.by_mass(static_cast<uint64_t>(std::max(goal, 1.0))));
  }
  if (a.min_p[r] > 0.0f) {
    const float farthest = std::clamp(-std::log(a.min_p[r]), 0.0f, kFarthest);
    last = std::min(last, static_cast<uint32_t>(farthest * kKeyUnits));
    total = row.mass_up_to(last);
  }
  const float uniform = a.uniform[r] > 0.0f ? std::min(a.uniform[r], 1.0f) : 0.0f;
  const auto target = static_cast<uint64_t>(uniform * static_cast<double>(total));
  const uint64_t goal = std::min(target, total - 1) + 1;
  const Group group = row.by_mass(goal);
  // Equals share the group's mass alike.
  const auto place =
      static_cast<int64_t>(static_cast<double>(goal - 1 - group.mass_before) /
                           static_cast<double>(group.mass) * static_cast<double>(group.count));
  a.tokens[r] = group.tokens[std::min(place, group.count - 1)].id;
  a.logprobs[r] = row.logprob(a.tokens[r]);
}

}  // namespace

void sample(const SampleArgs& args) {
  parallel_for(args.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      args.dtype == DType::f32 ? draw<float>(args, r) : draw<bf16>(args, r);
    }
  });
}

AFNEXT_REGISTER(sample, SampleArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
