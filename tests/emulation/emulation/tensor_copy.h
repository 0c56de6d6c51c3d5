// The copy engine: cp.async.bulk and cp.async.bulk.tensor (TMA), to shared memory with an mbarrier
// and back to global memory in groups.
//
// A copy lands when its block lets it: as late as anybody can wait, or at random.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "emulation/error.h"
#include "emulation/races.h"

namespace emulation {

enum class Swizzle : uint8_t { none, bytes32, bytes64, bytes128 };

// A tensor of up to five dimensions and the box that a copy moves, innermost first. It lies in the
// 128 opaque bytes of a CUtensorMap.
struct TensorMap {
  static constexpr int kMaxRank = 5;

  char* base = nullptr;
  int8_t rank = 0, element_bytes = 0;
  Swizzle swizzle = Swizzle::none;
  uint16_t box[kMaxRank] = {};
  uint32_t size[kMaxRank] = {};
  uint64_t stride[kMaxRank] = {};  // bytes; that of the first dimension is an element

  size_t box_bytes() const;
};
static_assert(sizeof(TensorMap) <= 128);

// What cuTensorMapEncodeTiled checks and refuses; strides from the second dimension on, in bytes.
TensorMap make_tensor_map(void* base, int element_bytes, int rank, const uint64_t* size,
                          const uint64_t* strides, const uint32_t* box, Swizzle swizzle);

// Where byte `address` of a swizzled tile really lies: 16-byte units change places within a row.
uint32_t swizzled(Swizzle swizzle, uint32_t address);

class TensorCopies {
 public:
  using Corner = std::array<int, TensorMap::kMaxRank>;

  void clear() { flying_.clear(), open_.clear(), groups_.clear(); }
  bool any() const { return !flying_.empty(); }
  // Stores that have read end by themselves; others in flight have been left behind.
  bool land_all();

  void load(const TensorMap& map, const Corner& corner, void* shared, uint64_t* barrier,
            const Where& where);
  void load_bytes(const void* global, size_t bytes, void* shared, uint64_t* barrier,
                  const Where& where);
  void store(const TensorMap& map, const Corner& corner, const void* shared, const Where& where);
  void store_bytes(void* global, size_t bytes, const void* shared, const Where& where);
  // Adds float32 instead of storing.
  void add_floats(void* global, size_t bytes, const void* shared, const Where& where);
  // Of the calling thread's stores.
  void commit();
  void wait(int pending);
  // Until they have read shared memory; what they write comes as late as it may.
  void wait_read(int pending);

  // One of the copies in flight, the `which`th or a later one.
  void land(uint64_t which);

 private:
  struct Copy {
    TensorMap map;
    Corner corner;
    uint32_t shared, barrier;
    bool to_shared;
    int thread, group;
    uint32_t issued;  // when, for what it reads
    Where where;
    bool adds = false;            // float32, instead of storing
    std::vector<char> read = {};  // of shared memory, once it has
  };
  void issue_bytes(void* global, size_t bytes, const void* shared, bool adds, const Where& where);
  void issue(Copy copy);
  bool is_awaited(const Copy& copy, int pending);
  void read(Copy& copy);
  void move(const Copy& copy);
  static void touch_global(const Copy& copy, const Accessor& who);

  std::vector<Copy> flying_;
  std::map<int, int> open_;    // thread to stores not committed
  std::map<int, int> groups_;  // thread to groups committed
};

}  // namespace emulation
