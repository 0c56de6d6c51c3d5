#include "case.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

using afnext::DType;
using afnext::TensorView;

namespace {

DType parse_dtype(const std::string& name) {
  for (const DType d : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::u8,
                        DType::i16, DType::i32, DType::i64, DType::boolean}) {
    if (name == afnext::dtype_name(d)) return d;
  }
  throw std::runtime_error("cases.txt: no dtype " + name);
}

int parse_list(const std::string& text, int64_t* out) {
  std::istringstream items(text);
  int count = 0;
  for (std::string item; std::getline(items, item, ',') && count < afnext::kMaxDims; ++count) {
    out[count] = std::stoll(item);
  }
  return count;
}

int64_t parse_offset(const std::string& text) { return text == "-" ? -1 : std::stoll(text); }

// Elements from the first to past the last.
int64_t extent(const TensorView& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int i = 0; i < t.ndim; ++i) last += (t.shape[i] - 1) * t.stride[i];
  return last + 1;
}

// Calls f(element) for every element, row by row, with its distance from the first.
template <typename F>
void for_each(const TensorView& t, const F& f) {
  int64_t index[afnext::kMaxDims] = {};
  const int64_t count = t.numel();
  for (int64_t n = 0; n < count; ++n) {
    int64_t at = 0;
    for (int i = 0; i < t.ndim; ++i) at += index[i] * t.stride[i];
    f(at);
    for (int i = t.ndim - 1; i >= 0 && ++index[i] == t.shape[i]; --i) index[i] = 0;
  }
}

template <typename T>
T read(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

double element(const TensorView& t, int64_t at) {
  const char* p = t.as<const char>() + at * dtype_size(t.dtype);
  switch (t.dtype) {
    case DType::f32:
      return read<float>(p);
    case DType::bf16: {
      const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(p)) << 16;
      return read<float>(reinterpret_cast<const char*>(&bits));
    }
    case DType::i32:
      return read<int32_t>(p);
    case DType::i64:
      return static_cast<double>(read<int64_t>(p));
    case DType::i8:
      return read<int8_t>(p);
    case DType::u8:
      return read<uint8_t>(p);
    default:
      throw std::runtime_error("cases.txt: results of this dtype are not read");
  }
}

// Empty if the tensor holds what it should.
std::string difference(const Tensor& t, const std::string& data) {
  const int size = dtype_size(t.view.dtype);
  const char* initial = data.data() + t.initial;
  const char* expected = data.data() + t.expected;
  std::string text;
  int64_t n = 0, wrong = 0;
  for_each(t.view, [&](int64_t at) {
    const int64_t i = n++;
    if (t.expected < 0) {
      wrong += std::memcmp(t.view.as<char>() + at * size, initial + i * size, size) != 0;
      return;
    }
    const double got = element(t.view, at), want = read<double>(expected + i * sizeof(double));
    const bool both_nan = std::isnan(got) && std::isnan(want);
    if (got == want || both_nan || std::abs(got - want) <= t.atol + t.rtol * std::abs(want)) return;
    if (wrong++ == 0) {
      text = ", the first at " + std::to_string(i) + ": " + std::to_string(got) + " for " +
             std::to_string(want);
    }
  });
  if (wrong == 0) return "";
  return t.name + ": " + std::to_string(wrong) + " of " + std::to_string(n) + " elements " +
         (t.expected < 0 ? "of an input have changed" : "are wrong") + text;
}

}  // namespace

const TensorView* Case::find(const std::string& wanted) const {
  for (const Tensor& t : tensors) {
    if (t.name == wanted) return &t.view;
  }
  return nullptr;
}

const TensorView& Case::operator[](const std::string& wanted) const {
  const TensorView* t = find(wanted);
  if (t == nullptr) throw std::runtime_error("cases.txt: " + op + " needs a tensor " + wanted);
  return *t;
}

const std::string& Case::word(const std::string& wanted) const {
  for (const auto& [key, value] : words_) {
    if (key == wanted) return value;
  }
  throw std::runtime_error("cases.txt: " + op + " needs " + wanted);
}

double Case::number(const std::string& wanted) const { return std::stod(word(wanted)); }

void Case::add_word(const std::string& key, const std::string& value) {
  words_.emplace_back(key, value);
}

void Case::allocate(const std::string& data) {
  for (Tensor& t : tensors) {
    const int64_t size = dtype_size(t.view.dtype), bytes = extent(t.view) * size;
    t.memory.reset(new char[size + bytes]);
    std::memset(t.memory.get(), 0xff, size + bytes);  // NaN
    t.view.data = t.memory.get() + size;
    if (t.initial < 0) continue;
    const char* from = data.data() + t.initial;
    for_each(t.view, [&](int64_t at) {
      std::memcpy(t.view.as<char>() + at * size, from, size);
      from += size;
    });
  }
}

std::string Case::compare(const std::string& data) const {
  for (const Tensor& t : tensors) {
    if (t.initial < 0 && t.expected < 0) continue;
    const std::string text = difference(t, data);
    if (!text.empty()) return text;
  }
  return "";
}

std::string Case::bytes() const {
  std::string all;
  for (const Tensor& t : tensors) {
    all.append(t.memory.get(), (extent(t.view) + 1) * dtype_size(t.view.dtype));
  }
  return all;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::ostringstream all;
  all << file.rdbuf();
  return all.str();
}

std::vector<Case> read_cases(const std::string& folder) {
  std::istringstream lines(read_file(folder + "/cases.txt"));
  std::vector<Case> cases;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string kind, name, dtype, shape, stride, initial, expected;
    words >> kind >> name;
    if (kind == "case") {
      cases.emplace_back();
      cases.back().op = name;
      std::getline(words >> std::ws, cases.back().name);
    } else if (kind == "throws") {
      cases.back().throws = name;
    } else if (kind == "number" || kind == "word") {
      std::string value;
      words >> value;
      cases.back().add_word(name, value);
    } else if (kind == "tensor") {
      Tensor t;
      words >> dtype >> shape >> stride >> initial >> expected >> t.atol >> t.rtol;
      t.name = name;
      t.view.dtype = parse_dtype(dtype);
      t.view.ndim = parse_list(shape, t.view.shape);
      parse_list(stride, t.view.stride);
      t.initial = parse_offset(initial);
      t.expected = parse_offset(expected);
      cases.back().tensors.push_back(std::move(t));
    } else {
      throw std::runtime_error("cases.txt: cannot read '" + line + "'");
    }
  }
  return cases;
}
