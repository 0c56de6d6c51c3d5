// The layers of a Qwen2 decoder over a paged cache, for inference: what an engine runs a step.
#pragma once

#include <memory>
#include <vector>

#include "afnext/pack.h"
#include "afnext/tensor.h"

namespace afnext {

// One layer. Norms are of the activations' dtype, as is the bias.
struct DecoderLayer {
  TensorView input_norm;           // [H]
  PackedView qkv;                  // [(Hq + 2 Hkv) D, H], rows of queries, keys, values
  TensorView qkv_bias;             // [(Hq + 2 Hkv) D], data null for none
  PackedView out;                  // [H, Hq D]
  TensorView post_attention_norm;  // [H]
  PackedView gate_up;              // [2 F, H], packed with gate_up
  PackedView down;                 // [H, F]
};

struct DecoderGeometry {
  int64_t heads, kv_heads, head_dim;
  double eps;
  TensorView inv_freq;  // float32 [D / 2]: positions turn queries and keys, halves of a head paired
};

// Where a step's tokens lie: those of request n are hidden[cu_seqlens[n] : cu_seqlens[n + 1]] and
// follow the start[n] tokens that its pages hold.
struct DecoderStep {
  const TensorView& page_table;  // int32 [N, max_pages]
  const TensorView& cu_seqlens;  // int32 [N + 1]
  const TensorView& start;       // int32 [N]
};

// Keys and values of all layers, a tensor for each: [P, Hkv, slot, D] of the activations' dtype, or
// int8 with scales [P, Hkv, slot] beside them (empty otherwise).
struct DecoderPages {
  const std::vector<TensorView>&keys, &values, &k_scales, &v_scales;
};

// Holds views: what they point at must outlive it. Its working memory grows with the longest step
// and is kept, so that a step allocates nothing once it has seen its like.
class Decoder {
 public:
  // Throws Error when weights do not fit the geometry.
  Decoder(const DecoderGeometry& geometry, std::vector<DecoderLayer> layers);
  ~Decoder();

  // Runs every layer over hidden, float32 or bfloat16 [T, H], contiguous, in place (the final norm
  // is the caller's), and appends its keys and values. Everything is checked before the first
  // write.
  void run(const TensorView& hidden, const DecoderPages& pages, const DecoderStep& step);

 private:
  struct Memory;
  DecoderGeometry geometry_;
  std::vector<DecoderLayer> layers_;
  std::unique_ptr<Memory> memory_;
};

}  // namespace afnext
