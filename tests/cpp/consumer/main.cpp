// Writes the bytes of one op's result at each level that is named, and nothing else.
#include <afnext/error.h>
#include <afnext/rms_norm.h>
#include <afnext/runtime.h>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  constexpr int64_t rows = 300, width = 1001;
  std::vector<float> x(rows * width), weight(width, 1.0f), out(rows * width);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 97) / 97;
  const auto view = [](std::vector<float>& data, std::vector<int64_t> shape) {
    afnext::TensorView t;
    t.data = data.data();
    t.dtype = afnext::DType::f32;
    t.ndim = static_cast<int>(shape.size());
    int64_t stride = 1;
    for (int i = t.ndim - 1; i >= 0; stride *= shape[i--])
      t.shape[i] = shape[i], t.stride[i] = stride;
    return t;
  };
  try {
    for (int i = 1; i < argc; ++i) {
      afnext::set_cpu_isa(argv[i]);
      afnext::rms_norm(view(x, {rows, width}), nullptr, view(weight, {width}), 1e-6,
                       view(out, {rows, width}), nullptr);
      std::fwrite(out.data(), sizeof(float), out.size(), stdout);
    }
  } catch (const afnext::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
