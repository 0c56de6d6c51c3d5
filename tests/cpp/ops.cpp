// How each op takes its arguments from a case. A new op adds a function here and its cases to
// make_cases.py.
#include "ops.h"

#include <afnext/attention.h>
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
#include <afnext/silu_mul.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>

namespace {

bool flag(const Case& c, const char* name) { return c.number(name) != 0; }
int64_t whole(const Case& c, const char* name) { return static_cast<int64_t>(c.number(name)); }

afnext::AttentionOptions attention_options(const Case& c) {
  return {c.find("cu_seqlens_q"),   c.find("cu_seqlens_k"), c.find("key_lengths"),
          c.find("times_q"),        c.find("times_k"),      c.find("inv_freq"),
          flag(c, "interleaved"),   flag(c, "causal"),      whole(c, "window_left"),
          whole(c, "window_right"), c.number("scale")};
}

// Packs the weight of a case, a plain one or the tensors of a quantised one, and multiplies by it.
void packed_linear(const Case& c) {
  const bool dense = c.find("weight") != nullptr;
  afnext::PackedView weight = afnext::packed_view("linear", c.word("format"), whole(c, "n"),
                                                  whole(c, "k"), flag(c, "gate_up"));
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, afnext::packed_bytes(weight)) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, void (*)(void*)> owner(memory, std::free);
  weight.data = memory;
  if (dense) {
    afnext::pack(c["weight"], weight);
  } else {
    afnext::pack_quantized({c["values"], c["scales"], c.find("zeros")}, weight);
  }
  afnext::packed_linear(c["x"], weight, c.find("bias"), c.find("residual"),
                        static_cast<afnext::Activation>(whole(c, "activation")), c["out"]);
}

const std::map<std::string, void (*)(const Case&)> kOps = {
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
    {"packed_linear", &packed_linear},
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
    {"silu_mul", [](const Case& c) { afnext::silu_mul(c["gate"], c["up"], c["out"]); }},
};

}  // namespace

void call(const Case& c) {
  const auto op = kOps.find(c.op);
  if (op == kOps.end()) throw std::runtime_error("cases.txt: the driver has no op " + c.op);
  op->second(c);
}
