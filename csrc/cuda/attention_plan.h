// From attention's arguments to what its kernels are told: sequences, and copies of what turns.
#pragma once

#include <optional>
#include <vector>

#include "afnext/attention.h"
#include "cuda/arch/call.h"
#include "cuda/attention_params.h"

namespace afnext::cuda {

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
  std::optional<Scratch> k_copy_, v_copy_, on_device_;
};

}  // namespace afnext::cuda
