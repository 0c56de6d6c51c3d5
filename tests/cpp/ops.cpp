// How each op takes its arguments from a case. A new op adds a function here and its cases to
// make_cases.py.
#include "ops.h"

#include <afnext/all_to_all.h>
#include <afnext/attention.h>
#include <afnext/decoder.h>
#include <afnext/layer_norm.h>
#include <afnext/linear.h>
#include <afnext/log_mel.h>
#include <afnext/merge_attention.h>
#include <afnext/pack_quantized.h>
#include <afnext/packed_linear.h>
#include <afnext/paged_append.h>
#include <afnext/paged_attention.h>
#include <afnext/rms_norm.h>
#include <afnext/rotate.h>
#include <afnext/sample.h>
#include <afnext/silu_mul.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace {

bool flag(const Case& c, const char* name) { return c.number(name) != 0; }
int64_t whole(const Case& c, const char* name) { return static_cast<int64_t>(c.number(name)); }

afnext::AttentionOptions attention_options(const Case& c) {
  return {c.find("cu_seqlens_q"),   c.find("cu_seqlens_k"), c.find("key_lengths"),
          c.find("times_q"),        c.find("times_k"),      c.find("inv_freq"),
          flag(c, "interleaved"),   flag(c, "causal"),      whole(c, "window_left"),
          whole(c, "window_right"), c.number("scale")};
}

// A packed weight with memory of its own.
class Packed {
 public:
  Packed(const char* op, const std::string& format, int64_t n, int64_t k, bool gate_up)
      : view_(afnext::packed_view(op, format, n, k, gate_up)), memory_(nullptr, std::free) {
    if (posix_memalign(&view_.data, 64, afnext::packed_bytes(view_)) != 0) throw std::bad_alloc();
    memory_.reset(view_.data);
  }

  const afnext::PackedView& view() const { return view_; }

 private:
  afnext::PackedView view_;
  std::unique_ptr<void, void (*)(void*)> memory_;
};

// The weight of a case, a plain one or the tensors of a quantised one.
Packed packed(const Case& c, const char* op) {
  Packed weight(op, c.word("format"), whole(c, "n"), whole(c, "k"), flag(c, "gate_up"));
  if (c.find("weight") != nullptr) {
    afnext::pack(c["weight"], weight.view());
  } else {
    afnext::pack_quantized({c["values"], c["scales"], c.find("zeros")}, weight.view());
  }
  return weight;
}

template <typename Product>
void packed_linear(const Case& c, const Product& product) {
  const Packed weight = packed(c, "linear");
  product(c["x"], weight.view(), c.find("bias"), c.find("residual"),
          static_cast<afnext::Activation>(whole(c, "activation")), c["out"]);
}

// A contiguous matrix (or a vector, where columns is 0) in memory of `storage`.
afnext::TensorView matrix(afnext::DType dtype, int64_t rows, int64_t columns,
                          std::vector<char>& storage) {
  afnext::TensorView t;
  t.dtype = dtype;
  t.ndim = columns == 0 ? 1 : 2;
  t.shape[0] = rows, t.stride[0] = columns == 0 ? 1 : columns;
  t.shape[1] = columns, t.stride[1] = 1;
  storage.resize(static_cast<size_t>(t.numel() * dtype_size(dtype)));
  t.data = storage.data();
  return t;
}

// A plain weight quantised, where the format is one of integers, and packed.
Packed quantized_and_packed(const afnext::TensorView& weight, const std::string& format,
                            bool gate_up) {
  using afnext::DType;
  const int64_t n = weight.shape[0], k = weight.shape[1];
  Packed out("decoder", format, n, k, gate_up);
  if (format.rfind("int", 0) != 0) {
    afnext::pack(weight, out.view());
    return out;
  }
  const size_t suffix = format.find("-zp");
  const afnext::QuantizedFormat f =
      afnext::quantized_format("quantize", format.substr(0, suffix), suffix != std::string::npos);
  std::vector<char> memory[3];
  const auto values = matrix(f.bits == 8 ? DType::i8 : DType::u8, n, f.value_bytes(k), memory[0]);
  const auto scales = f.group == 0 ? matrix(DType::f32, n, 0, memory[1])
                                   : matrix(DType::bf16, n, f.groups(k), memory[1]);
  const auto zeros = matrix(DType::u8, n, f.groups(k), memory[2]);
  const afnext::QuantizedTensors tensors{values, scales, f.zero_points ? &zeros : nullptr};
  afnext::quantize(weight, f, tensors);
  afnext::pack_quantized(tensors, out.view());
  return out;
}

void decoder(const Case& c) {
  std::vector<Packed> weights;
  std::vector<afnext::DecoderLayer> layers;
  std::vector<afnext::TensorView> k_pages, v_pages, k_scales, v_scales;
  for (int64_t i = 0; i < whole(c, "layers"); ++i) {
    const auto of_layer = [&](const char* name) { return name + ("." + std::to_string(i)); };
    const auto weight = [&](const char* name, bool gate_up = false) {
      weights.push_back(quantized_and_packed(c[of_layer(name)], c.word("format"), gate_up));
      return weights.back().view();
    };
    layers.push_back({c[of_layer("input_norm")], weight("qkv"), c[of_layer("qkv_bias")],
                      weight("out"), c[of_layer("post_attention_norm")], weight("gate_up", true),
                      weight("down")});
    k_pages.push_back(c[of_layer("k_pages")]);
    v_pages.push_back(c[of_layer("v_pages")]);
    if (k_pages.back().dtype == afnext::DType::i8) {
      k_scales.push_back(c[of_layer("k_scales")]);
      v_scales.push_back(c[of_layer("v_scales")]);
    }
  }
  afnext::Decoder decoder({whole(c, "heads"), whole(c, "kv_heads"), whole(c, "head_dim"),
                           c.number("eps"), c["inv_freq"]},
                          std::move(layers));
  decoder.run(c["hidden"], {k_pages, v_pages, k_scales, v_scales},
              {c["page_table"], c["cu_seqlens"], c["start"]});
}

afnext::HeadShards shards(const Case& c) {
  const auto list = [&](const char* name) {
    const afnext::TensorView& t = c[name];
    return std::vector<int64_t>(t.as<int64_t>(), t.as<int64_t>() + t.numel());
  };
  return {list("head_offsets"), list("head_order")};
}

const std::map<std::string, void (*)(const Case&)> kOps = {
    {"all_to_all_pack",
     [](const Case& c) { afnext::all_to_all_pack(c["x"], shards(c), {}, &c["out"]); }},
    {"all_to_all_unpack",
     [](const Case& c) { afnext::all_to_all_unpack(&c["x"], shards(c), {}, c["out"]); }},
    {"attention",
     [](const Case& c) {
       afnext::attention(c["q"], c["k"], c["v"], attention_options(c), c["out"], c["lse"]);
     }},
    {"attention_backward",
     [](const Case& c) {
       afnext::attention_backward(c["grad_out"], c.find("grad_lse"), c["q"], c["k"], c["v"],
                                  c["out"], c["lse"], attention_options(c), c["grad_q"],
                                  c["grad_k"], c["grad_v"]);
     }},
    {"decoder", &decoder},
    {"layer_norm",
     [](const Case& c) {
       afnext::layer_norm(c["x"], c["weight"], c["bias"], c.number("eps"), c.find("pooled"),
                          c["out"]);
     }},
    {"linear",
     [](const Case& c) { afnext::linear(c["x"], c["weight"], c.find("bias"), c["out"]); }},
    {"log_mel",
     [](const Case& c) {
       afnext::log_mel(c["samples"], c["cu_samples"], c["cu_frames"], c["out"]);
     }},
    {"merge_attention",
     [](const Case& c) {
       afnext::merge_attention(c["out_a"], c["lse_a"], c["out_b"], c["lse_b"], c["out"], c["lse"]);
     }},
    {"pack", [](const Case& c) { afnext::unpack(packed(c, "pack").view(), c["out"]); }},
    {"packed_linear",
     [](const Case& c) {
       packed_linear(c, [](const auto&... arguments) { afnext::packed_linear(arguments...); });
     }},
    {"packed_linear_tiles",
     [](const Case& c) {
       packed_linear(c,
                     [](const auto&... arguments) { afnext::packed_linear_tiles(arguments...); });
     }},
    {"paged_append",
     [](const Case& c) {
       afnext::paged_append(c["k"], c["v"], c["k_pages"], c["v_pages"], c["page_table"],
                            c["cu_seqlens"], c["start"], c.find("times"), c.find("inv_freq"),
                            flag(c, "interleaved"), c.find("k_scales"), c.find("v_scales"));
     }},
    {"paged_attention",
     [](const Case& c) {
       afnext::paged_attention(
           c["q"], c["k_pages"], c["v_pages"], c["page_table"], c["cu_seqlens_q"], c["kv_lengths"],
           {c.find("times"), c.find("inv_freq"), flag(c, "interleaved"), flag(c, "causal"),
            whole(c, "window_left"), whole(c, "window_right"), c.number("scale"),
            c.find("k_scales"), c.find("v_scales")},
           c["out"], c["lse"]);
     }},
    {"quantize",
     [](const Case& c) {
       afnext::quantize(
           c["weight"],
           afnext::quantized_format("quantize", c.word("format"), flag(c, "zero_points")),
           {c["values"], c["scales"], c.find("zeros")});
     }},
    {"rms_norm",
     [](const Case& c) {
       afnext::rms_norm(c["x"], c.find("residual"), c["weight"], c.number("eps"), c["out"],
                        c.find("total"));
     }},
    {"rotate",
     [](const Case& c) {
       afnext::rotate(c["x"], c.find("times"), c.find("inv_freq"), c.find("angles"),
                      flag(c, "interleaved"), flag(c, "inverse"), c["out"]);
     }},
    {"sample",
     [](const Case& c) {
       afnext::sample(c["logits"], c["temperature"], c["top_k"], c["top_p"], c["min_p"],
                      c["uniform"], c["tokens"], c["logprobs"]);
     }},
    {"silu_mul", [](const Case& c) { afnext::silu_mul(c["gate"], c["up"], c["out"]); }},
};

}  // namespace

void call(const Case& c) {
  const auto op = kOps.find(c.op);
  if (op == kOps.end()) throw std::runtime_error("cases.txt: the driver has no op " + c.op);
  op->second(c);
}
