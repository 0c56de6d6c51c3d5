#include "emulation/tensor_copy.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "emulation/block.h"

namespace emulation {
namespace {

constexpr uint32_t swizzle_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::none ? 0 : 16u << static_cast<int>(swizzle);
}

TensorMap line(void* global, size_t bytes, const Where& where) {
  if (bytes == 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail(where, "a bulk copy moves a multiple of 16 bytes from and to multiples of 16");
  }
  TensorMap map;
  map.base = static_cast<char*>(global), map.rank = 1, map.element_bytes = 16;
  map.size[0] = static_cast<uint32_t>(bytes / 16), map.stride[0] = 16;
  if (bytes / 16 > UINT16_MAX) fail(where, "a bulk copy of more than a megabyte");
  map.box[0] = static_cast<uint16_t>(bytes / 16);
  return map;
}

// Row `r` of a box in global memory, from where the tensor's first column would be; null outside.
char* row_of(const TensorMap& map, const TensorCopies::Corner& corner, size_t r) {
  char* row = map.base;
  for (int i = 1; i < map.rank; ++i) {
    const int64_t at = corner[static_cast<size_t>(i)] + static_cast<int64_t>(r % map.box[i]);
    if (at < 0 || at >= map.size[i]) return nullptr;
    r /= map.box[i];
    row += at * static_cast<int64_t>(map.stride[i]);
  }
  return row;
}

}  // namespace

size_t TensorMap::box_bytes() const {
  size_t bytes = static_cast<size_t>(element_bytes);
  for (int i = 0; i < rank; ++i) bytes *= box[i];
  return bytes;
}

TensorMap make_tensor_map(void* base, int element_bytes, int rank, const uint64_t* size,
                          const uint64_t* strides, const uint32_t* box, Swizzle swizzle) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw Error(std::string("tensor map: ") + what);
  };
  require(rank >= 1 && rank <= TensorMap::kMaxRank, "a tensor has 1 to 5 dimensions");
  require(reinterpret_cast<uintptr_t>(base) % 16 == 0, "the base must be a multiple of 16");
  TensorMap map;
  map.base = static_cast<char*>(base), map.rank = static_cast<int8_t>(rank);
  map.element_bytes = static_cast<int8_t>(element_bytes), map.swizzle = swizzle;
  for (int i = 0; i < rank; ++i) {
    require(size[i] >= 1 && size[i] <= uint64_t{1} << 32, "a dimension has 1 to 2^32 elements");
    require(box[i] >= 1 && box[i] <= 256, "a box has 1 to 256 elements a dimension");
    require(i == 0 || strides[i - 1] % 16 == 0, "strides must be multiples of 16 bytes");
    map.size[i] = static_cast<uint32_t>(size[i]), map.box[i] = static_cast<uint16_t>(box[i]);
    map.stride[i] = i == 0 ? static_cast<uint64_t>(element_bytes) : strides[i - 1];
  }
  const uint32_t row = box[0] * static_cast<uint32_t>(element_bytes);
  require(row % 16 == 0, "a box's rows must be multiples of 16 bytes");
  require(swizzle == Swizzle::none || row <= swizzle_bytes(swizzle),
          "a box's rows must fit the swizzle");
  return map;
}

uint32_t swizzled(Swizzle swizzle, uint32_t address) {
  // Bits 4 and up, as many as the mode has, by those three further up.
  const uint32_t mask = (1u << static_cast<int>(swizzle)) - 1;
  return address ^ (address >> 7 & mask) << 4;
}

void TensorCopies::load(const TensorMap& map, const Corner& corner, void* shared, uint64_t* barrier,
                        const Where& where) {
  Block& block = Block::current();
  const size_t alignment = map.swizzle == Swizzle::none ? 128 : 8 * swizzle_bytes(map.swizzle);
  const uint32_t address =
      block.shared.check(shared, map.box_bytes(), alignment, "a tensor copy", where);
  issue({map, corner, address, block.shared.check(barrier, 8, 8, "a tensor copy", where), true,
         block.thread().linear, 0, 0, where});
}

void TensorCopies::load_bytes(const void* global, size_t bytes, void* shared, uint64_t* barrier,
                              const Where& where) {
  Block& block = Block::current();
  const uint32_t address = block.shared.check(shared, bytes, 16, "a bulk copy", where);
  issue({line(const_cast<void*>(global), bytes, where),
         {},
         address,
         block.shared.check(barrier, 8, 8, "a bulk copy", where),
         true,
         block.thread().linear,
         0,
         0,
         where});
}

void TensorCopies::store(const TensorMap& map, const Corner& corner, const void* shared,
                         const Where& where) {
  Block& block = Block::current();
  const size_t alignment = map.swizzle == Swizzle::none ? 128 : 8 * swizzle_bytes(map.swizzle);
  issue({map, corner,
         block.shared.check(shared, map.box_bytes(), alignment, "a tensor copy", where), 0, false,
         block.thread().linear, 0, 0, where});
}

void TensorCopies::issue_bytes(void* global, size_t bytes, const void* shared, bool adds,
                               const Where& where) {
  Block& block = Block::current();
  issue({line(global, bytes, where),
         {},
         block.shared.check(shared, bytes, 16, "a bulk copy", where),
         0,
         false,
         block.thread().linear,
         0,
         0,
         where,
         adds});
}

void TensorCopies::store_bytes(void* global, size_t bytes, const void* shared, const Where& where) {
  issue_bytes(global, bytes, shared, false, where);
}

void TensorCopies::add_floats(void* global, size_t bytes, const void* shared, const Where& where) {
  issue_bytes(global, bytes, shared, true, where);
}

void TensorCopies::issue(Copy copy) {
  Block& block = Block::current();
  ++block.counters.tensor_copies;
  const size_t bytes = copy.map.box_bytes();
  const Accessor who = block.accessor(copy.where);
  touch_global(copy, who);
  if (copy.to_shared) {
    if (block.options.detect_races) block.races.write_begins(copy.shared, bytes, who);
    if (block.options.poison) std::memset(block.shared.data() + copy.shared, 0xff, bytes);
  } else {
    // What it reads must be there, and stay till it has read.
    if (block.options.detect_races) block.races.read(copy.shared, bytes, who, Proxy::async);
    copy.issued = block.races.now();
    copy.group = groups_[copy.thread];
    ++open_[copy.thread];
  }
  flying_.push_back(copy);
}

void TensorCopies::touch_global(const Copy& copy, const Accessor& who) {
  Block& block = Block::current();
  const TensorMap& map = copy.map;
  const auto size = static_cast<size_t>(map.element_bytes);
  const int64_t first = std::max(copy.corner[0], 0);
  const int64_t end = std::min<int64_t>(copy.corner[0] + map.box[0], map.size[0]);
  if (first >= end) return;
  for (size_t r = 0; r < map.box_bytes() / (map.box[0] * size); ++r) {
    const char* row = row_of(map, copy.corner, r);
    if (row == nullptr) continue;
    row += first * static_cast<int64_t>(size);
    const size_t bytes = static_cast<size_t>(end - first) * size;
    copy.to_shared ? block.read_global(row, bytes, who) : block.write_global(row, bytes, who);
  }
}

void TensorCopies::commit() {
  const int thread = Block::current().thread().linear;
  ++groups_[thread];
  open_[thread] = 0;
}

bool TensorCopies::is_awaited(const Copy& copy, int pending) {
  const int thread = Block::current().thread().linear;
  return !copy.to_shared && copy.thread == thread && copy.group < groups_[thread] - pending;
}

void TensorCopies::wait(int pending) {
  for (size_t i = 0; i < flying_.size();) {
    if (is_awaited(flying_[i], pending)) {
      land(i), i = 0;
    } else {
      ++i;
    }
  }
}

void TensorCopies::wait_read(int pending) {
  for (Copy& copy : flying_) {
    if (is_awaited(copy, pending)) read(copy);
  }
}

bool TensorCopies::land_all() {
  const auto has_read = [](const Copy& copy) { return !copy.read.empty(); };
  if (!std::all_of(flying_.begin(), flying_.end(), has_read)) return false;
  for (const Copy& copy : flying_) move(copy);
  flying_.clear();
  return true;
}

void TensorCopies::read(Copy& copy) {
  if (!copy.read.empty()) return;
  Block& block = Block::current();
  const size_t bytes = copy.map.box_bytes();
  if (block.options.detect_races) {
    const Accessor thread{copy.thread / kLanes, copy.thread % kLanes, copy.where, nullptr};
    block.races.read_late(copy.shared, bytes, thread, copy.issued);
  }
  const char* from = block.shared.data() + copy.shared;
  // A swizzle moves within 128 bytes, if they are there.
  copy.read.assign(from,
                   from + std::min((bytes + 127) / 128 * 128, SharedMemory::kBytes - copy.shared));
}

void TensorCopies::land(uint64_t which) {
  Block& block = Block::current();
  const size_t i = which % flying_.size();
  Copy copy = flying_[i];
  flying_.erase(flying_.begin() + static_cast<std::ptrdiff_t>(i));
  const size_t bytes = copy.map.box_bytes();
  const Accessor engine{kCopyEngine, 0, copy.where, nullptr};
  if (!copy.to_shared) {
    read(copy);
    return move(copy);
  }
  move(copy);
  block.races.tick(kCopyEngine);
  if (block.options.detect_races) block.races.write_lands(copy.shared, bytes, engine, Proxy::async);
  block.mbarriers.complete(copy.barrier, static_cast<uint32_t>(bytes),
                           block.races.clocks(kCopyEngine), copy.where);
}

void TensorCopies::move(const Copy& copy) {
  const TensorMap& map = copy.map;
  const auto size = static_cast<size_t>(map.element_bytes);
  const size_t row = map.box[0] * size, rows = map.box_bytes() / row;
  for (size_t r = 0; r < rows; ++r) {
    char* global = row_of(map, copy.corner, r);
    for (size_t e = 0; e < map.box[0]; ++e) {
      const int64_t at = copy.corner[0] + static_cast<int64_t>(e);
      const bool here = global != nullptr && at >= 0 && at < map.size[0];
      const uint32_t place =
          swizzled(map.swizzle, copy.shared + static_cast<uint32_t>(r * row + e * size));
      const char* from = copy.to_shared ? nullptr : copy.read.data() + (place - copy.shared);
      char* other = here ? global + at * static_cast<int64_t>(size) : nullptr;
      if (copy.to_shared) {
        char* element = Block::current().shared.data() + place;
        here ? std::memcpy(element, other, size) : std::memset(element, 0, size);
      } else if (here && copy.adds) {
        for (size_t at_byte = 0; at_byte < size; at_byte += sizeof(float)) {
          float sum, more;
          std::memcpy(&sum, other + at_byte, sizeof(float));
          std::memcpy(&more, from + at_byte, sizeof(float));
          sum += more;
          std::memcpy(other + at_byte, &sum, sizeof(float));
        }
      } else if (here) {
        std::memcpy(other, from, size);
      }
    }
  }
}

}  // namespace emulation
