#include "afnext/attention.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "afnext/error.h"
#include "cpu/attention.h"
#include "cpu/attention_backward.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "cuda/attention.h"
#include "cuda/attention_backward.h"
#include "cuda/backend.h"

namespace afnext {

constinit cpu::KernelTable<cpu::AttentionArgs> cpu::attention_kernels;
constinit cpu::KernelTable<cpu::AttentionArgs> cpu::attention_tiles_kernels;
constinit cpu::KernelTable<cpu::AttentionBackwardArgs> cpu::attention_backward_kernels;
constinit cpu::KernelTable<cpu::AttentionBackwardArgs> cpu::attention_backward_tiles_kernels;

namespace {

constexpr int64_t kMaxDim = 256;
// Pieces of work that keep this many threads evenly busy are worth some memory and repeated loads.
constexpr int64_t kPiecesPerThread = 4;

std::unique_ptr<float[]> working_memory(int64_t count) {
  std::unique_ptr<float[]> memory(new float[count]);  // not cleared
  cpu::expect_huge_pages(memory.get(), count * sizeof(float));
  return memory;
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

cpu::Heads heads_of(const TensorView& t) { return {t.data, t.stride[0], t.stride[1]}; }

void check_rotation(const Check& check, const TensorView& q, const TensorView& k,
                    const AttentionOptions& options) {
  const bool given = options.inv_freq != nullptr;
  check.require((options.times_q != nullptr) == given && (options.times_k != nullptr) == given,
                "rotation needs times_q, times_k and inv_freq");
  if (!given) return;
  const TensorView& inv_freq = *options.inv_freq;
  check.exact(*options.times_q, "rotation.times_q", DType::f32, {q.shape[0]});
  check.exact(*options.times_k, "rotation.times_k", DType::f32, {k.shape[0]});
  check.exact(inv_freq, "rotation.inv_freq", DType::f32,
              {inv_freq.ndim == 1 ? inv_freq.last() : 0});
  if (2 * inv_freq.last() > q.shape[2]) {
    check.fail("rotation.inv_freq turns 2 x " + std::to_string(inv_freq.last()) + " of " +
               std::to_string(q.shape[2]) + " channels");
  }
}

// Where sequences begin and end: cu_seqlens, or all tokens as one sequence.
struct Offsets {
  Offsets(const TensorView* cu_seqlens, int64_t tokens)
      : data(cu_seqlens ? cu_seqlens->as<int32_t>() : nullptr),
        count(cu_seqlens ? cu_seqlens->shape[0] - 1 : 1),
        tokens(tokens) {}

  int64_t first(int64_t n) const { return data ? data[n] : 0; }
  int64_t length(int64_t n) const { return data ? data[n + 1] - data[n] : tokens; }

  const int32_t* data;
  int64_t count, tokens;
};

void check_sequences(const Check& check, const TensorView& q, const TensorView& k,
                     const AttentionOptions& options) {
  if (options.cu_seqlens_q != nullptr) {
    check.offsets(*options.cu_seqlens_q, "cu_seqlens_q", DType::i32, q.shape[0]);
  }
  const Offsets queries(options.cu_seqlens_q, q.shape[0]);
  if (options.cu_seqlens_k != nullptr) {
    check.offsets(*options.cu_seqlens_k, "cu_seqlens_k", DType::i32, k.shape[0]);
    check.metadata(*options.cu_seqlens_k, "cu_seqlens_k", DType::i32, {queries.count + 1});
  }
  const Offsets keys(options.cu_seqlens_k, k.shape[0]);
  check.require(keys.count == queries.count, "cu_seqlens_k must be given beside cu_seqlens_q");
  if (options.key_lengths == nullptr) return;
  check.metadata(*options.key_lengths, "key_lengths", DType::i32, {keys.count});
  for (int64_t n = 0; n < keys.count; ++n) {
    const int32_t length = options.key_lengths->as<int32_t>()[n];
    if (length < 0 || length > keys.length(n)) {
      check.fail("key_lengths[" + std::to_string(n) + "] must be 0 to " +
                 std::to_string(keys.length(n)) + ", the keys of its sequence, got " +
                 std::to_string(length));
    }
  }
}

void check_inputs(const Check& check, const TensorView& q, const TensorView& k, const TensorView& v,
                  const AttentionOptions& options) {
  check.floating(q, "q", 3);
  check.floating_like(k, "k", q, 3);
  check.same(v, "v", k);
  if (q.shape[2] < 1 || q.shape[2] > kMaxDim) {
    check.fail("q must have a head dim of 1 to 256, got " + describe(q));
  }
  if (k.shape[2] != q.shape[2] || k.shape[1] < 1 || q.shape[1] % k.shape[1] != 0) {
    check.fail("k must be [Tk, Hkv, " + std::to_string(q.shape[2]) + "] with Hkv dividing " +
               std::to_string(q.shape[1]) + ", got " + describe(k));
  }
  check_sequences(check, q, k, options);
  check_rotation(check, q, k, options);
  check.require(options.window_left >= -1, "window must be >= -1 on its left");
  check.require(options.window_right >= -1, "window must be >= -1 on its right");
}

void check_results(const Check& check, const TensorView& q, const TensorView& out,
                   const TensorView& lse) {
  const DType dtype = out.dtype == DType::f32 ? DType::f32 : q.dtype;
  check.exact(out, "out", dtype, {q.shape[0], q.shape[1], q.shape[2]});
  check.exact(lse, "lse", DType::f32, {q.shape[1], q.shape[0]});
}

int64_t window_side(int64_t width) {
  return width < 0 ? cpu::Band::kUnlimited : std::min(width, cpu::Band::kUnlimited);
}

// A checked call and the memory that it points into.
class Plan {
 public:
  Plan(const TensorView& q, const TensorView& k, const TensorView& v,
       const AttentionOptions& options)
      : problem{q.dtype,
                q.shape[2],
                q.shape[1] / k.shape[1],
                k.shape[1],
                q.shape[0],
                k.shape[0],
                heads_of(q),
                heads_of(k),
                heads_of(v),
                nullptr,
                nullptr,
                nullptr,
                0,
                options.interleaved,
                nullptr,
                static_cast<float>(options.scale),
                nullptr} {
    if (options.inv_freq != nullptr && options.inv_freq->last() > 0) {
      problem.times_q = options.times_q->as<float>();
      problem.times_k = options.times_k->as<float>();
      problem.inv_freq = options.inv_freq->as<float>();
      problem.half = options.inv_freq->last();
      turned_keys_ = working_memory(problem.turned_size());
      problem.turned_keys = turned_keys_.get();
    }
    const Offsets queries(options.cu_seqlens_q, q.shape[0]);
    const Offsets keys(options.cu_seqlens_k, k.shape[0]);
    const int64_t left = window_side(options.window_left);
    const int64_t right = options.causal ? 0 : window_side(options.window_right);
    sequences_.reserve(queries.count);
    for (int64_t n = 0; n < queries.count; ++n) {
      const int64_t key_tokens = keys.length(n);
      const int64_t seen = options.key_lengths ? options.key_lengths->as<int32_t>()[n] : key_tokens;
      const int64_t rows = round_up(queries.length(n) * problem.group, cpu::kRowPad);
      sequences_.push_back({queries.first(n),
                            keys.first(n),
                            key_tokens,
                            total_rows_,
                            rows,
                            {queries.length(n), seen, left, right}});
      total_rows_ += rows;
    }
    problem.sequences = sequences_.data();
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Rows of all queries, the longest work first: threads take items as they become free.
  std::vector<cpu::AttentionItem> query_items() const {
    int64_t size = cpu::kItemRows;
    const int64_t wanted = kPiecesPerThread * cpu::num_threads();
    while (size > cpu::kRowUnit && total_rows_ * problem.kv_heads < wanted * size) size /= 2;
    std::vector<cpu::AttentionItem> items;
    for (size_t n = 0; n < sequences_.size(); ++n) {
      const int64_t rows = sequences_[n].band.queries * problem.group;
      for (int64_t head = 0; head < problem.kv_heads; ++head) {
        for (int64_t row = 0; row < rows; row += size) {
          items.push_back({static_cast<int64_t>(n), head, row, std::min(row + size, rows)});
        }
      }
    }
    longest_first(items);
    return items;
  }

  int64_t row_count() const { return total_rows_ * problem.kv_heads; }

  // Tiles of a head wait for one another, so that one goes first that has the most work behind it.
  std::vector<cpu::AttentionTile> tiles() const {
    std::vector<cpu::AttentionTile> tiles;
    for (size_t n = 0; n < sequences_.size(); ++n) {
      const int64_t keys = sequences_[n].key_tokens;
      for (int64_t head = 0; head < problem.kv_heads; ++head) {
        for (int64_t first = 0; first < keys; first += cpu::kTileKeys) {
          tiles.push_back({static_cast<int64_t>(n), head, first,
                           std::min(first + cpu::kTileKeys, keys),
                           static_cast<int64_t>(tiles.size())});
        }
      }
    }
    std::vector<int64_t> left(tiles.size());  // work of the tile and of those that follow it
    for (size_t i = tiles.size(); i-- > 0;) {
      const bool last = i + 1 == tiles.size() || tiles[i + 1].first == 0;
      left[i] = work(tiles[i]) + (last ? 0 : left[i + 1]);
    }
    std::stable_sort(tiles.begin(), tiles.end(),
                     [&](const cpu::AttentionTile& a, const cpu::AttentionTile& b) {
                       return left[a.index] > left[b.index];
                     });
    return tiles;
  }

  cpu::AttentionProblem problem;

 private:
  void longest_first(std::vector<cpu::AttentionItem>& items) const {
    if (items.size() < 2) return;  // a sort takes memory even then
    std::stable_sort(items.begin(), items.end(),
                     [this](const cpu::AttentionItem& a, const cpu::AttentionItem& b) {
                       return work(a) > work(b);
                     });
  }
  // Pairs of a row and a key, roughly.
  int64_t work(const cpu::AttentionItem& item) const {
    const cpu::Band& band = sequences_[item.sequence].band;
    const int64_t top = item.first / problem.group, bottom = (item.end - 1) / problem.group;
    return (item.end - item.first) *
           (band.end(bottom) + band.end(top) - band.first(bottom) - band.first(top));
  }
  // By causality query i sees keys up to i + keys - queries: the later a key, the fewer see it.
  int64_t work(const cpu::AttentionTile& tile) const {
    const cpu::Band& band = sequences_[tile.sequence].band;
    const int64_t keys = std::max<int64_t>(0, std::min(tile.end, band.keys) - tile.first);
    const int64_t middle = (tile.first + tile.end) / 2 - band.keys + band.queries;
    const int64_t from = std::clamp<int64_t>(middle - band.right, 0, band.queries);
    const int64_t to = std::clamp<int64_t>(middle + band.left + 1, 0, band.queries);
    return keys * (to - from);
  }

  std::vector<cpu::AttentionSequence> sequences_;
  std::unique_ptr<float[]> turned_keys_;
  int64_t total_rows_ = 0;  // per KV head, each sequence's rounded up
};

bool fits_tiles(const cpu::AttentionProblem& problem) {
  return problem.dtype == DType::bf16 && problem.dim % 32 == 0;
}

// Whether this machine has tiles and this build the kernel for them.
template <typename Args>
bool has_tiles(const cpu::KernelTable<Args>& kernels) {
  return cpu::active_isa() == cpu::Isa::amx &&
         kernels.by_isa[static_cast<int>(cpu::Isa::amx)] != nullptr;
}

template <typename Args>
void run_in_tiles(const Check& check, const cpu::KernelTable<Args>& kernels, const Args& args,
                  const char* inputs) {
  if (!cpu::fits_tiles(args)) {
    check.fail(inputs +
               std::string(" must be bfloat16 with a head dim of a multiple of 32 for tiles"));
  }
  check.require(kernels.best() != nullptr, "tiles need avx512 at least");
  kernels(args);
}

}  // namespace

bool cpu::fits_tiles(const AttentionArgs& args) {
  return afnext::fits_tiles(args.problem) && !args.out_is_float;
}

bool cpu::fits_tiles(const AttentionBackwardArgs& args) {
  return afnext::fits_tiles(args.problem) && !args.out_is_float && !args.grad_out_is_float;
}

void cpu::run_attention(const AttentionArgs& args) {
  constexpr int64_t kFewRows = 16;  // fewer leave most of a tile empty
  int64_t rows = 0;
  for (int64_t i = 0; i < args.item_count; ++i) rows += args.items[i].end - args.items[i].first;
  const bool tiles =
      has_tiles(attention_tiles_kernels) && fits_tiles(args) && rows >= kFewRows * args.item_count;
  tiles ? attention_tiles_kernels(args) : attention_kernels(args);
}

namespace {

// What the CPU's kernels make of a checked call.
template <typename Run>
void attend(const TensorView& q, const TensorView& k, const TensorView& v,
            const AttentionOptions& options, const TensorView& out, const TensorView& lse,
            const Run& run) {
  const Plan plan(q, k, v, options);
  const std::vector<cpu::AttentionItem> items = plan.query_items();
  run({plan.problem, items.data(), static_cast<int64_t>(items.size()), out.data,
       out.dtype == DType::f32, lse.as<float>()});
}

}  // namespace

void attention(const TensorView& q, const TensorView& k, const TensorView& v,
               const AttentionOptions& options, const TensorView& out, const TensorView& lse,
               Stream stream) {
  const Check check("attention", q);
  check_inputs(check, q, k, v, options);
  check_results(check, q, out, lse);
  if (q.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(q)) return cuda::attention(q, k, v, options, out, lse, stream);
  }
  attend(q, k, v, options, out, lse,
         [](const cpu::AttentionArgs& args) { cpu::run_attention(args); });
}

void attention_tiles(const TensorView& q, const TensorView& k, const TensorView& v,
                     const AttentionOptions& options, const TensorView& out,
                     const TensorView& lse) {
  const Check check("attention");
  check_inputs(check, q, k, v, options);
  check_results(check, q, out, lse);
  if (q.numel() == 0) return;
  attend(q, k, v, options, out, lse, [&](const cpu::AttentionArgs& args) {
    run_in_tiles(check, cpu::attention_tiles_kernels, args, "q and out");
  });
}

namespace {

void check_gradients(const Check& check, const TensorView& grad_out, const TensorView* grad_lse,
                     const TensorView& q, const TensorView& k, const TensorView& v,
                     const TensorView& out, const TensorView& lse, const AttentionOptions& options,
                     const TensorView& grad_q, const TensorView& grad_k, const TensorView& grad_v) {
  check_inputs(check, q, k, v, options);
  check_results(check, q, out, lse);
  check.floating(grad_out, "grad_out", 3);
  check.exact(grad_out, "grad_out", grad_out.dtype == DType::f32 ? DType::f32 : q.dtype,
              {q.shape[0], q.shape[1], q.shape[2]});
  if (grad_lse != nullptr) {
    check.exact(*grad_lse, "grad_lse", DType::f32, {q.shape[1], q.shape[0]});
  }
  const std::initializer_list<int64_t> like_k = {k.shape[0], k.shape[1], k.shape[2]};
  check.exact(grad_q, "grad_q", q.dtype, {q.shape[0], q.shape[1], q.shape[2]});
  check.exact(grad_k, "grad_k", q.dtype, like_k);
  check.exact(grad_v, "grad_v", q.dtype, like_k);
}

// What `run` does with a checked call.
template <typename Run>
void differentiate(const Check& check, const TensorView& grad_out, const TensorView* grad_lse,
                   const TensorView& q, const TensorView& k, const TensorView& v,
                   const TensorView& out, const TensorView& lse, const AttentionOptions& options,
                   const TensorView& grad_q, const TensorView& grad_k, const TensorView& grad_v,
                   const Run& run) {
  if (q.numel() == 0) {  // no query, or no head that asks
    for (const TensorView* grad : {&grad_k, &grad_v}) {
      if (grad->numel() > 0) std::memset(grad->data, 0, grad->numel() * dtype_size(grad->dtype));
    }
    return;
  }
  const Plan plan(q, k, v, options);
  const std::vector<cpu::AttentionItem> query_items = plan.query_items();
  const std::vector<cpu::AttentionTile> tiles = plan.tiles();
  std::vector<cpu::Progress> progress(tiles.size());
  const int64_t rows = plan.row_count(), row_size = round_up(q.shape[2], cpu::kDimUnit);
  const auto softmax = working_memory(rows * cpu::softmax_rows(q.shape[2]));
  const auto query_sums = working_memory(rows * row_size);
  const auto arranged = working_memory(rows * row_size * cpu::kArranged);
  run(check,
      {plan.problem, tiles.data(), static_cast<int64_t>(tiles.size()), query_items.data(),
       static_cast<int64_t>(query_items.size()), heads_of(grad_out), heads_of(out),
       grad_out.dtype == DType::f32, out.dtype == DType::f32,
       grad_lse ? grad_lse->as<float>() : nullptr, lse.as<float>(), progress.data(), rows,
       softmax.get(), query_sums.get(), arranged.get(), grad_q.data, grad_k.data, grad_v.data});
}

}  // namespace

void attention_backward(const TensorView& grad_out, const TensorView* grad_lse, const TensorView& q,
                        const TensorView& k, const TensorView& v, const TensorView& out,
                        const TensorView& lse, const AttentionOptions& options,
                        const TensorView& grad_q, const TensorView& grad_k,
                        const TensorView& grad_v, Stream stream) {
  const Check check("attention_backward", q);
  check_gradients(check, grad_out, grad_lse, q, k, v, out, lse, options, grad_q, grad_k, grad_v);
  if constexpr (kCuda) {
    if (on_cuda(q)) {
      return cuda::attention_backward(grad_out, grad_lse, q, k, v, out, lse, options, grad_q,
                                      grad_k, grad_v, stream);
    }
  }
  differentiate(check, grad_out, grad_lse, q, k, v, out, lse, options, grad_q, grad_k, grad_v,
                [](const Check&, const cpu::AttentionBackwardArgs& args) {
                  const bool tiles =
                      has_tiles(cpu::attention_backward_tiles_kernels) && cpu::fits_tiles(args);
                  tiles ? cpu::attention_backward_tiles_kernels(args)
                        : cpu::attention_backward_kernels(args);
                });
}

void attention_backward_tiles(const TensorView& grad_out, const TensorView* grad_lse,
                              const TensorView& q, const TensorView& k, const TensorView& v,
                              const TensorView& out, const TensorView& lse,
                              const AttentionOptions& options, const TensorView& grad_q,
                              const TensorView& grad_k, const TensorView& grad_v, Stream) {
  const Check check("attention_backward");
  check_gradients(check, grad_out, grad_lse, q, k, v, out, lse, options, grad_q, grad_k, grad_v);
  differentiate(check, grad_out, grad_lse, q, k, v, out, lse, options, grad_q, grad_k, grad_v,
                [](const Check& check, const cpu::AttentionBackwardArgs& args) {
                  run_in_tiles(check, cpu::attention_backward_tiles_kernels, args,
                               "q, out and grad_out");
                });
}

}  // namespace afnext
