// The mask of attention: each query of a sequence sees one run of its keys.
#pragma once

#include <cstdint>

namespace afnext::cpu {

// Aligned at the bottom right: the last query stands at the last key. Causal is right = 0, no mask
// is an unlimited band. Both bounds never fall from one query to the next, so that a block's trip
// count comes from its first and last query.
struct Band {
  static constexpr int64_t kUnlimited = int64_t{1} << 40;

  int64_t queries, keys;
  int64_t left, right;  // keys before and after a query's own, at most kUnlimited

  // Query i sees the keys [first(i), end(i)).
  __attribute__((always_inline)) int64_t first(int64_t i) const {
    return within(i + keys - queries - left);
  }
  __attribute__((always_inline)) int64_t end(int64_t i) const {
    return within(i + keys - queries + right + 1);
  }

 private:
  __attribute__((always_inline)) int64_t within(int64_t key) const {
    return key < 0 ? 0 : key > keys ? keys : key;
  }
};

}  // namespace afnext::cpu
