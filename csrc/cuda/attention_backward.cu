// Backward attention: P again from the log-sum-exp (FlashAttention, Dao et al. 2022), in two passes
// of one kernel. The first keeps keys and sums grad_k and grad_v over rows, the second keeps rows
// and sums grad_q over keys; each gradient is summed in one block, in one order, and written once.
// Hopper has a kernel of its own for 64 and 128 channels: attention_backward_sm90_kernel.h.
//
// Why two passes: a single one has 5 products a tile instead of 7, but must add each tile's part of
// grad_q to memory, in float32, Tk / 128 times. By atomics that gives other bits each time; in
// turns it waits for other blocks; both need Tq Hq D floats of memory and L2 traffic beside the
// products. Here nothing waits, nothing is cleared, and training can be repeated to the bit, at
// 5 / 7 of the speed that the tensor cores would allow. (Hopper's copy engine adds in turns beside
// the products, so its kernel makes one pass, which is the same to the bit too.)
//
// FLOPs: 14 D a visible pair of a query head and a key (10 D by the field's count, of one pass).
// Bytes: a tile of 128 keys reads its rows' q and grad_out once, a tile of 128 rows its keys' k and
// v, for the most part from the L2. Sizes, and what of it fits a multiprocessor of sm_90:
//
//     D    pass           rows of a block  columns a stage  shared memory  registers  blocks
//     64   both           128 (4 x 32)     64, by 32        65 KB          255        2
//     96   both           128 (8 x 16)     64               97 KB          244        1
//     128  keys           64 (4 x 16)      64               97 KB          251        2
//     128  rows           128 (4 x 32)     32               97 KB          253        2
//     192  both           64 (4 x 16)      32               97 KB          238        2
//     256  both           64 (4 x 16)      32 (16)          129 (97) KB    255        1
//
// (In brackets: where a block can have but 99 KB.) Sums of x and y, P and dS must fit into 255
// registers. A warp keeps 32 rows where they do, so that what it reads of a stage serves
// two fragments; beyond 128 channels keys take two launches, for grad_v (2 products) and grad_k
// (3).
//
// At D = 128, 16 keys a warp: 2 (8 + 32) + 2 x 32 reads of 512 bytes for 256 products keep
// shared memory busy for 4,608 clocks while the tensor cores of an A100 need 4,096, those of an
// H200 about 3,000: shared memory is the limit (on an H200 72% of what it can), 278 TFLOP/s over
// 8,192 tokens. Rows do 310 in 32s, 271 in 16s. Where a multiprocessor has room for one block only
// (an A100), it has eight warps.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/arch/call.h"
#include "cuda/attention_backward.h"
#include "cuda/attention_backward_kernel.h"
#include "cuda/attention_backward_rows.h"
#include "cuda/attention_backward_sm90.h"
#include "cuda/attention_plan.h"
#include "cuda/dispatch.h"

namespace afnext::cuda {
namespace {

// Tiles of one side, the longest work first: blocks start in this order.
template <typename Side>
std::vector<BackwardItem> items_of(const std::vector<PackedSequence>& sequences,
                                   const BackwardParams& p, int size) {
  std::vector<BackwardItem> items;
  std::vector<int> lengths;
  for (size_t n = 0; n < sequences.size(); ++n) {
    const Meetings all{sequences[n].band, p.group};
    const int count = Side::count(all, sequences[n].keys), meeting = Side::meeting(all);
    for (int first = 0; first < count; first += size) {
      const int last = std::min(first + size, meeting) - 1;
      const int length = first > last ? 0 : Side::met(all, last).high - Side::met(all, first).low;
      for (int head = 0; head < p.kv_heads; ++head) {
        items.push_back({static_cast<int>(n), head, first});
        lengths.push_back(length);
      }
    }
  }
  std::vector<int> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return lengths[a] > lengths[b]; });
  std::vector<BackwardItem> sorted;
  sorted.reserve(items.size());
  for (const int i : order) sorted.push_back(items[i]);
  return sorted;
}

template <typename T, typename Out, int kVector>
void softmax_rows(const Call& call, const SoftmaxParams& p) {
  constexpr int64_t kRowsPerBlock = kRowThreads / 16;
  const int64_t blocks = (p.tokens * p.heads + kRowsPerBlock - 1) / kRowsPerBlock;
  call.launch<softmax_rows_kernel<T, Out, kVector>>(static_cast<unsigned>(blocks), kRowThreads, 0,
                                                    p);
}

template <typename T>
void softmax_rows(const Call& call, const SoftmaxParams& p, const TensorView& out, bool wide) {
  constexpr int kVector = 16 / sizeof(T);
  if (out.dtype == DType::f32) {
    wide ? softmax_rows<T, float, kVector>(call, p) : softmax_rows<T, float, 1>(call, p);
  } else {
    wide ? softmax_rows<T, T, kVector>(call, p) : softmax_rows<T, T, 1>(call, p);
  }
}

// Both passes over a call's sequences, so many keys or rows a block.
class Passes {
 public:
  Passes(const Call& call, const std::vector<PackedSequence>& sequences, BackwardParams p,
         int block_keys, int block_rows)
      : call_(call),
        keys_(items_of<KeySide>(sequences, p, block_keys)),
        rows_(items_of<RowSide>(sequences, p, block_rows)),
        memory_(call, sequences.size() * sizeof(PackedSequence) +
                          (keys_.size() + rows_.size()) * sizeof(BackwardItem)),
        params_(p) {
    auto* to = memory_.as<PackedSequence>();
    params_.sequences = to;
    call.upload(to, sequences.data(), sequences.size() * sizeof(PackedSequence));
    auto* items = reinterpret_cast<BackwardItem*>(to + sequences.size());
    std::vector<BackwardItem> both = keys_;
    both.insert(both.end(), rows_.begin(), rows_.end());
    params_.items = items;
    call.upload(items, both.data(), both.size() * sizeof(BackwardItem));
  }

  template <auto kernel>
  void keys(int threads, size_t shared) {
    call_.launch<kernel>(static_cast<unsigned>(keys_.size()), threads, shared, params_);
  }
  template <auto kernel>
  void rows(int threads, size_t shared) {
    BackwardParams p = params_;
    p.items += keys_.size();
    call_.launch<kernel>(static_cast<unsigned>(rows_.size()), threads, shared, p);
  }

 private:
  const Call& call_;
  std::vector<BackwardItem> keys_, rows_;
  Scratch memory_;
  BackwardParams params_;
};

// Passes over keys and over rows by shapes of their own.
template <typename T, typename KeyShape, typename RowShape = KeyShape>
void run_mma(const Call& call, const std::vector<PackedSequence>& sequences,
             const BackwardParams& p) {
  Passes passes(call, sequences, p, KeyShape::kRows, RowShape::kRows);
  constexpr size_t kShared = sizeof(typename KeyShape::Shared);
  if constexpr (KeyShape::kDim <= 128) {
    passes.template keys<attention_backward_kernel<T, KeyShape, KeySide, Sums::both>>(
        KeyShape::kThreads, kShared);
  } else {
    passes.template keys<attention_backward_kernel<T, KeyShape, KeySide, Sums::y>>(
        KeyShape::kThreads, kShared);
    passes.template keys<attention_backward_kernel<T, KeyShape, KeySide, Sums::x>>(
        KeyShape::kThreads, kShared);
  }
  passes.template rows<attention_backward_kernel<T, RowShape, RowSide, Sums::x>>(
      RowShape::kThreads, sizeof(typename RowShape::Shared));
}

// How many blocks find room in the shared memory that one can have, which is about all there is.
template <typename Shape>
size_t blocks_of(const Call& call) {
  return call.device().shared_bytes / sizeof(typename Shape::Shared);
}

template <typename T>
void run_mma_128(const Call& call, const std::vector<PackedSequence>& sequences,
                 const BackwardParams& p) {
  using SmallKeys = MmaShape<128, 4, 16, 64, 64>;  // half a block's keys leave more blocks
  using SmallRows = MmaShape<128, 4, 32, 32, 32>;
  using Keys = MmaShape<128, 8, 16, 64, 64>;
  using Rows = MmaShape<128, 8, 32, 32, 32>;
  if (blocks_of<SmallKeys>(call) >= 2) return run_mma<T, SmallKeys, SmallRows>(call, sequences, p);
  if (blocks_of<Rows>(call) >= 1) return run_mma<T, Keys, Rows>(call, sequences, p);
  run_mma<T, SmallKeys, SmallRows>(call, sequences, p);
}

template <typename T, typename Shape, typename SmallShape>
void run_either(const Call& call, const std::vector<PackedSequence>& sequences,
                const BackwardParams& p) {
  if (blocks_of<Shape>(call) >= 1) {
    run_mma<T, Shape>(call, sequences, p);
  } else {
    run_mma<T, SmallShape>(call, sequences, p);
  }
}

void run(const Call& call, const std::vector<PackedSequence>& sequences, const BackwardParams& p,
         float) {
  Passes passes(call, sequences, p, kRowWarps, kRowWarps);
  passes.keys<attention_backward_rows<KeySide>>(kRowThreads, sizeof(RowTile));
  passes.rows<attention_backward_rows<RowSide>>(kRowThreads, sizeof(RowTile));
}

template <typename T>
void run(const Call& call, const std::vector<PackedSequence>& sequences, const BackwardParams& p,
         T) {
  if (p.dim <= 64) return run_mma<T, MmaShape<64, 4, 32, 64, 32>>(call, sequences, p);
  if (p.dim <= 96) return run_mma<T, MmaShape<96, 8, 16, 64, 64>>(call, sequences, p);
  if (p.dim <= 128) return run_mma_128<T>(call, sequences, p);
  if (p.dim <= 192) return run_mma<T, MmaShape<192, 4, 16, 32, 32>>(call, sequences, p);
  run_either<T, MmaShape<256, 4, 16, 32, 32>, MmaShape<256, 4, 16, 16, 16>>(call, sequences, p);
}

}  // namespace

void attention_backward(const TensorView& grad_out, const TensorView* grad_lse, const TensorView& q,
                        const TensorView& k, const TensorView& v, const TensorView& out,
                        const TensorView& lse, const AttentionOptions& options,
                        const TensorView& grad_q, const TensorView& grad_k,
                        const TensorView& grad_v, Stream stream) {
  const Call call("attention_backward", q, stream);
  if (q.numel() == 0) {  // no query, or no head that asks
    for (const TensorView* grad : {&grad_k, &grad_v}) {
      if (grad->numel() > 0) call.clear(grad->data, grad->numel() * dtype_size(grad->dtype));
    }
    return;
  }
  const int64_t heads = q.shape[1], dim = q.shape[2], group = heads / k.shape[1];
  if (std::max(q.shape[0] * group, k.shape[0]) > INT32_MAX) {
    call.fail("takes 2**31 - 1 rows of a KV head at most");
  }
  with_dtype(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Turn turn_q = turn_of(options, options.times_q);
    const Turn turn_k = turn_of(options, options.times_k);
    const ReadableHeads turned_q(call, q, q.dtype, turn_q), turned_k(call, k, q.dtype, turn_k);
    const ReadableHeads values(call, v, q.dtype);
    // A gradient that comes in float32 is rounded once, and everything follows from what it then
    // is.
    const ReadableHeads grads(call, grad_out, q.dtype);

    const Scratch softmax(call, q.shape[0] * heads * sizeof(float2));
    const bool wide = dim % 8 == 0 && rows_align(out) && (sizeof(T) == 2 || rows_align(grad_out));
    const SoftmaxParams rows{grads.heads(),
                             heads_of(out),
                             lse.as<float>(),
                             grad_lse ? grad_lse->as<float>() : nullptr,
                             sizeof(T) == 2 ? kLog2E : 1.0f,
                             softmax.as<float2>(),
                             q.shape[0],
                             static_cast<int>(heads),
                             static_cast<int>(group),
                             static_cast<int>(dim)};
    softmax_rows<T>(call, rows, out, wide);

    const BackwardParams p{
        turned_q.heads(),
        turned_k.heads(),
        values.heads(),
        grads.heads(),
        softmax.as<float2>(),
        q.shape[0] * group,
        nullptr,
        nullptr,
        static_cast<int>(dim),
        static_cast<int>(group),
        static_cast<int>(k.shape[1]),
        static_cast<float>(options.scale),
        turn_q.times,
        turn_k.times,
        turn_q.inv_freq,
        turn_q.half,
        turn_q.interleaved,
        grad_q.data,
        grad_k.data,
        grad_v.data,
        rows_align(grad_q) && rows_align(grad_k) && rows_align(grad_v),
    };
    const std::vector<PackedSequence> sequences = sequences_of(q, k, options);
    if (!attention_backward_sm90(call, q.dtype, sequences, q.shape[0], p)) {
      run(call, sequences, p, zero);
    }
  });
}

}  // namespace afnext::cuda
