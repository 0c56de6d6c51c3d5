// A plan's memory on the device. Host code.
#include "cuda/arch/buffers.h"
#include "cuda/paged_batch.h"
#include "cuda/paged_plan.h"

namespace afnext::cuda {
namespace {

class Plan final : public PagedAttentionPlan::Backend {
 public:
  Plan(const TensorView& k_pages, const PagedLimits& limits, const PagedPlanOptions& options,
       Stream stream)
      : pages_(k_pages),
        shape_{options.heads / k_pages.shape[1],
               k_pages.shape[1],
               k_pages.shape[2],
               options.window_left,
               options.causal ? 0 : options.window_right,
               limits.splits},
        most_(PagedWork::most(shape_, limits)) {
    const Call call("paged_plan", pages_, stream);
    words_ = std::make_unique<UploadBuffer>(call, most_.words * sizeof(int32_t));
    partials_ = std::make_unique<DeviceMemory>(call, partial_bytes(most_, k_pages.shape[3]));
    error_ = std::make_unique<ErrorFlag>(call);
    const PagedHeader nothing{};
    words_->upload(call, &nothing, sizeof(nothing));
  }

  void update(const TensorView& page_table, const TensorView& cu_seqlens,
              const TensorView& kv_lengths, Stream stream) override {
    const Call call("paged_plan", pages_, stream);
    work_.fill(shape_, page_table, cu_seqlens, kv_lengths, true);
    const PagedCounts& counts = work_.counts();
    if (counts.words > most_.words || counts.partial_rows > most_.partial_rows) {
      call.fail("a batch within the plan's limits needs more memory than was foreseen");
    }
    words_->upload(call, work_.words(), work_.bytes());
  }

  void append(const PagedTokens& tokens, Stream stream) override {
    run_paged_append(Call("paged_append", pages_, stream), batch(), tokens);
  }

  void attend(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
              const PagedAttentionOptions& options, const TensorView& out, const TensorView& lse,
              Stream stream) override {
    run_paged_attention(Call("paged_attention", pages_, stream), batch(), q, k_pages, v_pages,
                        options, out, lse);
  }

  int32_t error() override { return error_->take(); }
  void wait(Stream stream) override { cuda::wait(Call("paged_plan", pages_, stream)); }
  PagedAttentionPlan::Words words() const override {
    return {words_->words(), work_.counts().words};
  }

 private:
  PagedBatch batch() const {
    return {words_->words(), error_->device(), partials_->as<float>(), most_};
  }

  TensorView pages_;  // shape and device
  PagedShape shape_;
  PagedCounts most_;
  PagedWork work_;
  std::unique_ptr<UploadBuffer> words_;
  std::unique_ptr<DeviceMemory> partials_;
  std::unique_ptr<ErrorFlag> error_;
};

}  // namespace

std::unique_ptr<PagedAttentionPlan::Backend> paged_plan(const TensorView& k_pages,
                                                        const PagedLimits& limits,
                                                        const PagedPlanOptions& options,
                                                        Stream stream) {
  return std::make_unique<Plan>(k_pages, limits, options, stream);
}

}  // namespace afnext::cuda
