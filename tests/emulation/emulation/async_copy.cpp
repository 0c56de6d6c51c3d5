#include "emulation/async_copy.h"

#include <cstring>

#include "emulation/block.h"

namespace emulation {

void AsyncCopies::issue(void* shared, const void* global, int bytes, int source_bytes,
                        const Where& where) {
  Block& block = Block::current();
  ++block.counters.async_copies;
  if (bytes != 4 && bytes != 8 && bytes != 16) fail(where, "cp.async copies 4, 8 or 16 bytes");
  if (source_bytes < 0 || source_bytes > bytes) {
    fail(where, "cp.async reads between none and all of its bytes");
  }
  block.read_global(global, static_cast<size_t>(source_bytes), block.accessor(where));
  const uint32_t address =
      block.shared.check(shared, bytes, static_cast<size_t>(bytes), "cp.async", where);
  if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(bytes) != 0) {
    fail(where, "cp.async reads from a multiple of its size");
  }
  if (block.options.detect_races) {
    block.races.write_begins(address, static_cast<size_t>(bytes), block.accessor(where));
  }
  if (block.options.poison) std::memset(shared, 0xff, static_cast<size_t>(bytes));
  open_.push_back({shared, global, bytes, source_bytes, where});
}

void AsyncCopies::commit() {
  groups_.push_back(std::move(open_));
  open_.clear();
}

void AsyncCopies::wait(int pending) {
  while (static_cast<int>(groups_.size()) > pending) {
    for (const Copy& copy : groups_.front()) land(copy);
    groups_.pop_front();
  }
}

void AsyncCopies::land(const Copy& copy) {
  Block& block = Block::current();
  const auto bytes = static_cast<size_t>(copy.bytes), read = static_cast<size_t>(copy.source_bytes);
  if (read > 0) std::memcpy(copy.to, copy.from, read);
  std::memset(static_cast<char*>(copy.to) + read, 0, bytes - read);
  if (block.options.detect_races) {
    block.races.write_lands(block.shared.address(copy.to), bytes, block.accessor(copy.where),
                            Proxy::generic);
  }
}

void AsyncCopies::check_end() const {
  for (const auto& group : groups_) {
    if (!group.empty()) fail(group.front().where, "a cp.async that nobody waits for");
  }
  if (!open_.empty()) fail(open_.front().where, "a cp.async that nobody commits");
}

}  // namespace emulation
