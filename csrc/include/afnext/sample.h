#pragma once

#include "afnext/tensor.h"

namespace afnext {

// Draws a token a row from softmax(logits / temperature), cut to its likeliest tokens.
//
// Cuts, in this order, each of what the one before has left: the top_k likeliest (0: all), the
// likeliest that together reach top_p of the probability (1: all), those of at least min_p of the
// likeliest's probability (0: all). Equally likely tokens are kept or dropped together, the
// likeliest always stays. What is left is laid end to end, the likeliest first and equals by id;
// the token drawn is the one where `uniform` of the whole is reached: a row's numbers and its
// uniform alone decide. temperature 0 takes the likeliest, of equals the first.
//
// Probabilities are relative to the likeliest one, in units of 2**-40; logits whose distance to it,
// over the temperature, differs by less than 2**-27 count as equal where there is a temperature.
// NaN counts as -inf.
//
//   logits: float32 or bfloat16 (on CUDA also float16) [B, V], rows at any distance; temperature,
//   top_p, min_p, uniform (in [0, 1)): float32 [B]; top_k: int32 [B]; all on logits' device.
//   tokens: int64 [B]. logprobs: float32 [B], of the token under softmax(logits / temperature)
//   before the cuts (temperature 0: under softmax(logits)).
void sample(const TensorView& logits, const TensorView& temperature, const TensorView& top_k,
            const TensorView& top_p, const TensorView& min_p, const TensorView& uniform,
            const TensorView& tokens, const TensorView& logprobs, Stream stream = {});

}  // namespace afnext
