#include "afnext/sample.h"

#include "afnext/error.h"
#include "cpu/sample.h"
#include "cuda/backend.h"
#include "cuda/sample.h"

namespace afnext {

constinit cpu::KernelTable<cpu::SampleArgs> cpu::sample_kernels;

void sample(const TensorView& logits, const TensorView& temperature, const TensorView& top_k,
            const TensorView& top_p, const TensorView& min_p, const TensorView& uniform,
            const TensorView& tokens, const TensorView& logprobs, Stream stream) {
  constexpr int64_t kMaxVocabulary = 1 << 23;  // whose probabilities' sum 64 bits hold
  const Check check("sample", logits);
  check.floating(logits, "logits", 2);
  const int64_t rows = logits.shape[0], vocabulary = logits.shape[1];
  if (vocabulary < 1 || vocabulary > kMaxVocabulary) {
    check.fail("logits must be [B, V] with V from 1 to 2**23, got " + describe(logits));
  }
  check.exact(temperature, "temperature", DType::f32, {rows});
  check.exact(top_k, "top_k", DType::i32, {rows});
  check.exact(top_p, "top_p", DType::f32, {rows});
  check.exact(min_p, "min_p", DType::f32, {rows});
  check.exact(uniform, "uniform", DType::f32, {rows});
  check.exact(tokens, "tokens", DType::i64, {rows});
  check.exact(logprobs, "logprobs", DType::f32, {rows});
  if (rows == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(logits)) {
      return cuda::sample(logits, temperature, top_k, top_p, min_p, uniform, tokens, logprobs,
                          stream);
    }
  }
  cpu::sample_kernels({logits.dtype, rows, vocabulary, logits.data, logits.row_stride(),
                       temperature.as<const float>(), top_k.as<const int32_t>(),
                       top_p.as<const float>(), min_p.as<const float>(), uniform.as<const float>(),
                       tokens.as<int64_t>(), logprobs.as<float>()});
}

}  // namespace afnext
