// From attention's arguments to what its kernels are told: sequences, and copies of what turns.
#pragma once

#include <optional>
#include <vector>

#include "afnext/attention.h"
#include "cuda/arch/call.h"
#include "cuda/attention_params.h"
#include "cuda/turn_heads.h"

namespace afnext::cuda {

// By cu_seqlens and key_lengths, or all tokens as one; those without queries too.
std::vector<PackedSequence> sequences_of(const TensorView& q, const TensorView& k,
                                         const AttentionOptions& options);

// The call's rotation by these of its times, or none.
Turn turn_of(const AttentionOptions& options, const TensorView* times);

class AttentionPlan {
 public:
  // Launches the copies that kernels of 16-byte units need; k's is turned.
  AttentionPlan(const Call& call, const TensorView& q, const TensorView& k, const TensorView& v,
                const AttentionOptions& options, const TensorView& out, const TensorView& lse);

  // For blocks of `tile_rows` rows; the memory behind them is this plan's.
  const AttentionParams& params(int tile_rows);

 private:
  const Call& call_;
  AttentionParams params_{};
  std::vector<AttentionSequence> sequences_;
  ReadableHeads k_, v_;
  std::optional<Scratch> on_device_;
};

}  // namespace afnext::cuda
