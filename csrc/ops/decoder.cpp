#include "afnext/decoder.h"

#include <cstdlib>
#include <new>
#include <string>

#include "afnext/attention.h"
#include "afnext/error.h"
#include "afnext/packed_linear.h"
#include "afnext/paged_append.h"
#include "afnext/paged_attention.h"
#include "afnext/rms_norm.h"
#include "ops/pages.h"

namespace afnext {
namespace {

// Memory of one tensor, kept from step to step.
class Buffer {
 public:
  ~Buffer() { std::free(data_); }
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  TensorView view(DType dtype, std::initializer_list<int64_t> shape) {
    TensorView t;
    t.dtype = dtype;
    for (int64_t size : shape) t.shape[t.ndim++] = size;
    int64_t packed = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
      t.stride[i] = packed;
      packed *= t.shape[i];
    }
    t.data = at_least(static_cast<size_t>(packed * dtype_size(dtype)));
    return t;
  }

 private:
  void* at_least(size_t bytes) {
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = (bytes + 63) / 64 * 64;
      data_ = std::aligned_alloc(64, bytes_);
      if (data_ == nullptr) {
        bytes_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Heads [first, first + count) of rows that hold several groups of them: [T, count, D], no copy.
TensorView heads(const TensorView& rows, int64_t first, int64_t count, int64_t dim) {
  TensorView t = rows;
  t.ndim = 3;
  t.data = static_cast<char*>(rows.data) + first * dim * dtype_size(rows.dtype);
  t.shape[1] = count, t.stride[1] = dim;
  t.shape[2] = dim, t.stride[2] = 1;
  return t;
}

TensorView flat_heads(const TensorView& t) {
  TensorView rows = t;
  rows.ndim = 2;
  rows.shape[1] = t.shape[1] * t.shape[2], rows.stride[1] = 1;
  return rows;
}

std::string layer_name(size_t layer, const char* part) {
  return "layers[" + std::to_string(layer) + "]." + part;
}

}  // namespace

struct Decoder::Memory {
  Buffer normed, qkv, mixed, lse, wide, times, lengths;
};

Decoder::Decoder(const DecoderGeometry& geometry, std::vector<DecoderLayer> layers)
    : geometry_(geometry), layers_(std::move(layers)), memory_(new Memory) {
  const Check check("decoder");
  const DecoderGeometry& g = geometry_;
  check.require(g.kv_heads > 0 && g.heads > 0 && g.heads % g.kv_heads == 0,
                "heads must be a multiple of kv_heads");
  if (g.head_dim < 1 || g.head_dim > kMaxHeadDim) {
    check.fail("head_dim must be 1 to " + std::to_string(kMaxHeadDim) + ", got " +
               std::to_string(g.head_dim));
  }
  check.exact(g.inv_freq, "inv_freq", DType::f32, {g.head_dim / 2});
  const int64_t queries = g.heads * g.head_dim, rows = queries + 2 * g.kv_heads * g.head_dim;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DecoderLayer& l = layers_[i];
    const int64_t hidden = l.qkv.k, wide = l.down.k;
    const auto shaped = [&](const PackedView& w, const char* part, int64_t n, int64_t k,
                            bool gate_up = false) {
      if (w.gate_up != gate_up) {
        check.fail(layer_name(i, part) + " must be packed with" + (gate_up ? "" : "out") +
                   " gate_up");
      }
      if (w.n == n && w.k == k) return;
      check.fail(layer_name(i, part) + " must be packed from [" + std::to_string(n) + ", " +
                 std::to_string(k) + "], got [" + std::to_string(w.n) + ", " + std::to_string(w.k) +
                 "]");
    };
    shaped(l.qkv, "qkv", rows, layers_[0].qkv.k);
    shaped(l.out, "out", hidden, queries);
    shaped(l.gate_up, "gate_up", 2 * wide, hidden, true);
    shaped(l.down, "down", hidden, wide);
    const DType dtype = layers_[0].input_norm.dtype;
    check.floating(l.input_norm, layer_name(i, "input_norm").c_str(), 1);
    check.exact(l.input_norm, layer_name(i, "input_norm").c_str(), dtype, {hidden});
    check.exact(l.post_attention_norm, layer_name(i, "post_attention_norm").c_str(), dtype,
                {hidden});
    if (l.qkv_bias.data != nullptr) {
      check.exact(l.qkv_bias, layer_name(i, "qkv_bias").c_str(), dtype, {rows});
    }
  }
}

Decoder::~Decoder() = default;

void Decoder::run(const TensorView& hidden, const DecoderPages& pages, const DecoderStep& step) {
  const Check check("decoder");
  const DecoderGeometry& g = geometry_;
  check.floating(hidden, "hidden", 2);
  check.contiguous(hidden, "hidden");
  const std::vector<TensorView>&k_pages = pages.keys, &v_pages = pages.values;
  const auto scaled = [&](const std::vector<TensorView>& scales) {
    return scales.empty() || scales.size() == layers_.size();
  };
  check.require(k_pages.size() == layers_.size() && v_pages.size() == layers_.size() &&
                    scaled(pages.k_scales) && scaled(pages.v_scales),
                "k_pages, v_pages and their scales must hold one tensor a layer");
  const auto scales_of = [](const std::vector<TensorView>& scales, size_t layer) {
    return scales.empty() ? nullptr : &scales[layer];
  };
  const int64_t tokens = hidden.shape[0], groups = g.heads + 2 * g.kv_heads;
  check.offsets(step.cu_seqlens, "cu_seqlens", DType::i32, tokens);
  const int64_t requests = step.cu_seqlens.shape[0] - 1;
  check.exact(step.start, "start", DType::i32, {requests});
  if (layers_.empty()) return;
  check.exact(hidden, "hidden", layers_[0].input_norm.dtype, {tokens, layers_[0].qkv.k});

  Memory& m = *memory_;
  const TensorView times = m.times.view(DType::f32, {tokens});
  const TensorView lengths = m.lengths.view(DType::i32, {requests});
  const int32_t *ends = step.cu_seqlens.as<int32_t>(), *start = step.start.as<int32_t>();
  for (int64_t n = 0; n < requests; ++n) {
    check.require(start[n] >= 0, "start must not be negative");
    lengths.as<int32_t>()[n] = start[n] + ends[n + 1] - ends[n];
    for (int32_t i = ends[n]; i < ends[n + 1]; ++i) {
      times.as<float>()[i] = static_cast<float>(start[n] + i - ends[n]);
    }
  }
  const TensorView sample = heads(hidden, 0, g.kv_heads, g.head_dim);
  for (size_t i = 0; i < layers_.size(); ++i) {
    check_pages(check, sample, k_pages[i], v_pages[i], scales_of(pages.k_scales, i),
                scales_of(pages.v_scales, i));
    check.exact(k_pages[i], "k_pages", k_pages[i].dtype,
                {k_pages[i].shape[0], g.kv_heads, k_pages[i].shape[2], g.head_dim});
  }
  check_table(check, step.page_table, requests);
  for (int64_t n = 0; n < requests; ++n) {
    for (const TensorView& of_layer : k_pages) {
      check_tokens(check, step.page_table, of_layer, n, 0, lengths.as<int32_t>()[n], "length");
    }
  }
  if (tokens == 0) return;

  const DType dtype = hidden.dtype;
  const TensorView normed = m.normed.view(dtype, {tokens, hidden.shape[1]});
  const TensorView qkv = m.qkv.view(dtype, {tokens, groups * g.head_dim});
  const TensorView q = heads(qkv, 0, g.heads, g.head_dim);
  const TensorView k = heads(qkv, g.heads, g.kv_heads, g.head_dim);
  const TensorView v = heads(qkv, g.heads + g.kv_heads, g.kv_heads, g.head_dim);
  const TensorView mixed = m.mixed.view(dtype, {tokens, g.heads, g.head_dim});
  const TensorView lse = m.lse.view(DType::f32, {g.heads, tokens});
  PagedAttentionOptions options{&times,
                                &g.inv_freq,
                                false,
                                true,
                                -1,
                                -1,
                                1.0 / __builtin_sqrt(static_cast<double>(g.head_dim)),
                                nullptr,
                                nullptr};
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DecoderLayer& l = layers_[i];
    const TensorView wide = m.wide.view(dtype, {tokens, l.down.k});
    rms_norm(hidden, nullptr, l.input_norm, g.eps, normed, nullptr);
    packed_linear(normed, l.qkv, l.qkv_bias.data ? &l.qkv_bias : nullptr, nullptr, Activation::none,
                  qkv);
    options.k_scales = scales_of(pages.k_scales, i);
    options.v_scales = scales_of(pages.v_scales, i);
    paged_append(k, v, k_pages[i], v_pages[i], step.page_table, step.cu_seqlens, step.start, &times,
                 &g.inv_freq, false, options.k_scales, options.v_scales);
    paged_attention(q, k_pages[i], v_pages[i], step.page_table, step.cu_seqlens, lengths, options,
                    mixed, lse);
    packed_linear(flat_heads(mixed), l.out, nullptr, &hidden, Activation::none, hidden);
    rms_norm(hidden, nullptr, l.post_attention_norm, g.eps, normed, nullptr);
    packed_linear(normed, l.gate_up, nullptr, nullptr, Activation::silu_mul, wide);
    packed_linear(wide, l.down, nullptr, &hidden, Activation::none, hidden);
  }
}

}  // namespace afnext
