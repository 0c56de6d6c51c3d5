#include "emulation/warpgroup.h"

#include <cmath>
#include <cstring>
#include <set>
#include <string>

#include "emulation/block.h"
#include "emulation/numbers.h"

namespace emulation {
namespace {

// A matrix descriptor of the PTX manual: where a tile lies in shared memory.
struct Tile {
  explicit Tile(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        leading(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
        base_offset(static_cast<int>(descriptor >> 49 & 7)),
        swizzle(static_cast<Swizzle>((4 - (descriptor >> 62)) & 3)) {}

  // Byte address of element (i, k): i along m or n. Tiles are made of 8 x 16-byte pieces, whose
  // rows a swizzle keeps together as 2, 4 or 8 neighbours.
  uint32_t address(int i, int k, bool along_rows, int bytes) const {
    const auto u = [](int value) { return static_cast<uint32_t>(value); };
    const int per_unit = 16 / bytes;
    const uint32_t pitch = 16u << static_cast<int>(swizzle);
    uint32_t offset;
    if (!along_rows) {
      const uint32_t unit = u(k / per_unit), inside = u(k % per_unit * bytes);
      offset = u(i % 8) * pitch + u(i / 8) * stride + inside +
               unit * (swizzle == Swizzle::none ? leading : 16);
    } else {
      const int per_row = per_unit << static_cast<int>(swizzle);
      const uint32_t inside = u(i % per_row * bytes), piece = u(i / per_row);
      offset = inside + u(k % 8) * pitch;
      offset += swizzle == Swizzle::none ? piece * stride + u(k / 8) * leading
                                         : piece * leading + u(k / 8) * stride;
    }
    return swizzled(swizzle, start + offset);
  }

  uint32_t start, leading, stride;
  int base_offset;
  Swizzle swizzle;
};

// Reads elements and tells the race detector once a 16-byte unit.
class Reader {
 public:
  Reader(uint64_t descriptor, bool along_rows, Element element, const Accessor& who,
         uint32_t issued)
      : tile_(descriptor), along_rows_(along_rows), element_(element), who_(who), issued_(issued) {
    if (tile_.base_offset != 0) fail(who.where, "a matrix descriptor with a base offset");
  }

  float operator()(int i, int k) {
    Block& block = Block::current();
    const int bytes = bytes_of(element_);
    const uint32_t address = touch(i, k);
    uint32_t bits = 0;
    std::memcpy(&bits, block.shared.data() + address, static_cast<size_t>(bytes));
    return number(element_, bits, 0);
  }
  // Its address, once read.
  uint32_t touch(int i, int k) {
    Block& block = Block::current();
    const uint32_t address = tile_.address(i, k, along_rows_, bytes_of(element_));
    const uint32_t unit = address / 16 * 16;
    if (seen_.insert(unit).second) {
      block.shared.check(unit, 16, "wgmma", who_.where);
      if (block.options.detect_races) block.races.read_late(unit, 16, who_, issued_);
    }
    return address;
  }

 private:
  Tile tile_;
  bool along_rows_;
  Element element_;
  Accessor who_;
  uint32_t issued_;
  std::set<uint32_t> seen_;
};

// Of accumulator register i: its row among the warp's 16, its column among n.
constexpr int row_of(int lane, int i) { return lane / 4 + i / 2 % 2 * 8; }
constexpr int column_of(int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }

}  // namespace

void WarpgroupProducts::issue(const std::array<void*, kLanes>& calls, const Where& where) {
  Block& block = Block::current();
  const bool takes_a = static_cast<WarpgroupProduct*>(calls[0])->a != nullptr;
  if (!(takes_a ? a_fenced_ : fenced_))
    fail(where, "wgmma whose registers no wgmma.fence has handed over");
  Issued product;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& call = *static_cast<WarpgroupProduct*>(calls[static_cast<size_t>(lane)]);
    const auto& first = *static_cast<WarpgroupProduct*>(calls[0]);
    if (call.a_descriptor != first.a_descriptor || call.b_descriptor != first.b_descriptor) {
      fail(where, "wgmma whose lanes give different descriptors");
    }
    if (call.n % 8 != 0 || call.n < 8 || call.n > 256)
      fail(where, "wgmma takes n of 8 to 256 by 8");
    const auto l = static_cast<size_t>(lane);
    product.lanes[l] = call;
    if (call.a != nullptr) std::memcpy(product.a[l].data(), call.a, 16);
    const auto count = static_cast<size_t>(call.n / 2);
    auto [held, fresh] = held_[l].try_emplace(call.d, call.d, call.d + count);
    if (fresh && block.options.poison) std::fill_n(call.d, count, NAN);
  }
  product.issued = block.races.now(), product.where = where;
  open_.push_back(product);
}

void WarpgroupProducts::commit() {
  groups_.push_back(std::move(open_));
  open_.clear();
  a_fenced_ = false;
}

void WarpgroupProducts::wait(int pending) {
  while (static_cast<int>(groups_.size()) > pending) {
    for (const Issued& product : groups_.front()) run(product);
    groups_.pop_front();
  }
  fenced_ = a_fenced_ = false;
  give_back();
}

// Accumulators that no product in flight adds to.
void WarpgroupProducts::give_back() {
  std::set<float*> busy[kLanes];
  const auto mark = [&](const Issued& product) {
    for (size_t lane = 0; lane < kLanes; ++lane) busy[lane].insert(product.lanes[lane].d);
  };
  for (const auto& group : groups_) {
    for (const Issued& product : group) mark(product);
  }
  for (const Issued& product : open_) mark(product);
  for (size_t lane = 0; lane < kLanes; ++lane) {
    for (auto held = held_[lane].begin(); held != held_[lane].end();) {
      if (busy[lane].count(held->first) != 0) {
        ++held;
        continue;
      }
      std::memcpy(held->first, held->second.data(), held->second.size() * sizeof(float));
      held = held_[lane].erase(held);
    }
  }
}

void WarpgroupProducts::run(const Issued& product) {
  Block& block = Block::current();
  ++block.counters.warpgroup_products;
  const WarpgroupProduct& call = product.lanes[0];
  const int k = 32 / bytes_of(call.element), per_register = 4 / bytes_of(call.element);
  const int first_row = warp_ % 4 * 16;
  const Accessor who{warp_, 0, product.where, nullptr};
  static thread_local float a[16][32], b[32][256], sums[16][256];
  if (call.a == nullptr) {
    Reader read(call.a_descriptor, call.a_by_rows, call.element, who, product.issued);
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < k; ++i) a[r][i] = read(first_row + r, i);
    }
    // Nothing says that a warp reads no other warp's rows.
    for (int r = 0; r < 64; ++r) {
      for (int i = 0; i < k; ++i) read.touch(r, i);
    }
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto l = static_cast<size_t>(lane);
      if (std::memcmp(product.lanes[l].a, product.a[l].data(), sizeof(product.a[l])) != 0) {
        fail(product.where, "a register of wgmma's was changed before the wait for it");
      }
      for (int i = 0; i < 4; ++i) {
        for (int e = 0; e < per_register; ++e) {
          const int column = lane % 4 * per_register + i / 2 * k / 2 + e;
          a[lane / 4 + i % 2 * 8][column] =
              number(call.element, product.a[static_cast<size_t>(lane)][static_cast<size_t>(i)], e);
        }
      }
    }
  }
  Reader read(call.b_descriptor, call.b_by_rows, call.element, who, product.issued);
  for (int c = 0; c < call.n; ++c) {
    for (int i = 0; i < k; ++i) b[i][c] = read(c, i);
  }
  const auto accumulators = [&](int lane) {
    const auto l = static_cast<size_t>(lane);
    return held_[l].at(product.lanes[l].d).data();
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < call.n / 2; ++i) {
      sums[row_of(lane, i)][column_of(lane, i)] = call.accumulate ? accumulators(lane)[i] : 0;
    }
  }
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < k; ++i) {
      for (int c = 0; c < call.n; ++c) sums[r][c] += a[r][i] * b[i][c];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < call.n / 2; ++i) {
      accumulators(lane)[i] = sums[row_of(lane, i)][column_of(lane, i)];
    }
  }
}

void WarpgroupProducts::check_end() const {
  if (!open_.empty()) fail(open_.front().where, "a wgmma that nobody commits");
  for (const auto& group : groups_) {
    if (!group.empty()) fail(group.front().where, "a wgmma that nobody waits for");
  }
}

}  // namespace emulation
