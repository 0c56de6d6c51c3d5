#include "afnext/decoder.h"

#include <optional>

#include "bindings/bindings.h"
#include "bindings/packed.h"

namespace afnext::bindings {
namespace {

constexpr const char* op = "decoder";

// afnext.ops.PackedWeight
PackedView packed_weight(py::handle weight) {
  const py::object data = weight.attr("data");
  return packed_tensor(op, TensorView{}, Tensor(data, op, "weight"),
                       weight.attr("kernel").cast<std::string>(), weight.attr("n").cast<int64_t>(),
                       weight.attr("k").cast<int64_t>(), weight.attr("gate_up").cast<bool>());
}

TensorView tensor(py::handle object, const char* name) { return Tensor(object, op, name); }

// What a step writes, a tensor for each layer.
std::vector<TensorView> written(const py::list& objects, const char* name) {
  std::vector<TensorView> views;
  for (py::handle object : objects) views.push_back(Tensor(object, op, name, Access::write).view());
  return views;
}

// afnext.ops.DecoderLayer
DecoderLayer decoder_layer(py::handle layer) {
  const py::object bias = layer.attr("qkv_bias");
  return {tensor(layer.attr("input_norm"), "input_norm"),
          packed_weight(layer.attr("qkv")),
          bias.is_none() ? TensorView{} : tensor(bias, "qkv_bias"),
          packed_weight(layer.attr("out")),
          tensor(layer.attr("post_attention_norm"), "post_attention_norm"),
          packed_weight(layer.attr("gate_up")),
          packed_weight(layer.attr("down"))};
}

// Keeps the Python objects alive whose memory the decoder reads.
class HeldDecoder {
 public:
  HeldDecoder(py::list layers, int64_t heads, int64_t kv_heads, int64_t head_dim, double eps,
              py::object inv_freq)
      : layers_(layers), inv_freq_(inv_freq) {
    std::vector<DecoderLayer> views;
    for (py::handle layer : layers) views.push_back(decoder_layer(layer));
    decoder_.emplace(DecoderGeometry{heads, kv_heads, head_dim, eps, tensor(inv_freq, "inv_freq")},
                     std::move(views));
  }

  void run(py::handle hidden, const py::list& k_pages, const py::list& v_pages,
           const py::list& k_scales, const py::list& v_scales, py::handle page_table,
           py::handle cu_seqlens, py::handle start) {
    const Tensor hidden_(hidden, op, "hidden", Access::write), table(page_table, op, "page_table"),
        ends(cu_seqlens, op, "cu_seqlens"), start_(start, op, "start");
    const std::vector<TensorView> keys = written(k_pages, "k_pages"),
                                  values = written(v_pages, "v_pages"),
                                  key_scales = written(k_scales, "k_scales"),
                                  value_scales = written(v_scales, "v_scales");
    const py::gil_scoped_release release;
    decoder_->run(hidden_, {keys, values, key_scales, value_scales}, {table, ends, start_});
  }

 private:
  py::list layers_;
  py::object inv_freq_;
  std::optional<Decoder> decoder_;
};

const Binding binding([](py::module_& m) {
  py::class_<HeldDecoder>(m, "Decoder", py::module_local())
      .def(py::init<py::list, int64_t, int64_t, int64_t, double, py::object>())
      .def("run", &HeldDecoder::run);
});

}  // namespace
}  // namespace afnext::bindings
