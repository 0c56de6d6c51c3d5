// Reference cases as tests/cpp/make_cases.py writes them: cases.txt says what there is, cases.bin
// holds the numbers. A line of cases.txt is one of
//
//   case OP NAME                  begins a case
//   number NAME VALUE             an argument that is no tensor ..
//   word NAME VALUE               .. or a string
//   tensor NAME DTYPE SHAPE STRIDE INITIAL EXPECTED ATOL RTOL
//   throws TEXT                   the op must throw afnext::Error, TEXT in its message
//
// SHAPE and STRIDE are "3,64", strides in elements. INITIAL is where in cases.bin the values before
// the call lie, row by row in DTYPE, EXPECTED where those after it do, as float64; "-" is none:
// then the tensor starts as garbage, or must be left as it was.
#pragma once

#include <afnext/tensor.h>

#include <memory>
#include <string>
#include <vector>

struct Tensor {
  std::string name;
  afnext::TensorView view;
  int64_t initial = -1, expected = -1;  // offsets in cases.bin
  double atol = 0, rtol = 0;
  std::unique_ptr<char[]> memory;
};

class Case {
 public:
  std::string op, name;
  std::string throws;  // empty: must not
  std::vector<Tensor> tensors;

  // Arguments by name. A tensor or number that is missing from the file is fatal; `find` may give
  // null.
  const afnext::TensorView& operator[](const std::string& name) const;
  const afnext::TensorView* find(const std::string& name) const;
  double number(const std::string& name) const;
  const std::string& word(const std::string& name) const;

  void add_word(const std::string& name, const std::string& value);
  // Gives every tensor memory of its own, exactly as long as it needs and no better aligned than
  // its elements ask for, so that a sanitizer sees the first byte too many.
  void allocate(const std::string& data);
  // What is wrong with the results, or nothing.
  std::string compare(const std::string& data) const;
  // All elements of all tensors.
  std::string bytes() const;

 private:
  std::vector<std::pair<std::string, std::string>> words_;
};

std::vector<Case> read_cases(const std::string& folder);
std::string read_file(const std::string& path);
