// Runs every reference case through the C++ interface, on every instruction set that this machine
// and this build have, with one thread and with several.
//
//   driver FOLDER [OP]     FOLDER as make_cases.py writes it; OP runs the cases of one op
#include <afnext/error.h>
#include <afnext/runtime.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <exception>
#include <set>

#include "case.h"
#include "ops.h"

namespace {

constexpr int kThreads[] = {1, 3};

bool in_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

bool has_word(const std::string& text, const std::string& word) {
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    if ((at == 0 || !in_word(text[at - 1])) && (end == text.size() || !in_word(text[end]))) {
      return true;
    }
  }
  return false;
}

// Runs one case; gives what is wrong, or nothing. `result` receives the bits of its tensors.
std::string run(Case& c, const std::string& data, std::string* result) {
  c.allocate(data);
  try {
    call(c);
  } catch (const afnext::Error& error) {
    const std::string message = error.what();
    if (c.throws.empty()) return "threw '" + message + "'";
    const std::string op = message.substr(0, message.find(':'));  // packed_linear says linear
    const bool ours = !op.empty() && c.op.size() >= op.size() &&
                      c.op.compare(c.op.size() - op.size(), op.size(), op) == 0;
    if (ours && has_word(message, c.throws)) return "";
    return "'" + message + "' does not begin with its op or name " + c.throws;
  }
  if (!c.throws.empty()) return "should throw an error that names " + c.throws;
  *result = c.bytes();
  return c.compare(data);
}

// The levels up to the one in use, which AFNEXT_CPU_ISA caps.
std::vector<std::string> levels() {
  std::vector<std::string> found;
  const std::string best = afnext::cpu_isa();
  const char* const order[] = {"baseline", "avx2", "avx_vnni", "avx512", "avx512_bf16", "amx"};
  const std::vector<std::string> compiled = afnext::compiled_cpu_isas();
  for (const char* level : order) {
    if (std::count(compiled.begin(), compiled.end(), level) > 0 && afnext::can_run_cpu_isa(level)) {
      found.push_back(level);
    }
    if (level == best) break;
  }
  return found;
}

int run_all(const std::string& folder, const std::string& only) {
  std::vector<Case> cases = read_cases(folder);
  const std::string data = read_file(folder + "/cases.bin");
  int runs = 0, failures = 0;
  std::set<std::string> ops;
  std::string names;
  for (const std::string& level : levels()) {
    afnext::set_cpu_isa(level.c_str());
    names += " " + level;
    // A setting of threads costs a pool, so it is the outer loop; results are kept to compare.
    std::vector<std::string> first(cases.size());
    for (const int threads : kThreads) {
      afnext::set_num_threads(threads);
      for (size_t i = 0; i < cases.size(); ++i) {
        Case& c = cases[i];
        if (!only.empty() && c.op != only) continue;
        std::string result;
        std::string wrong = run(c, data, &result);
        if (threads == kThreads[0]) {
          first[i] = result;
        } else if (wrong.empty() && result != first[i]) {
          wrong = "other bits than with " + std::to_string(kThreads[0]) + " thread";
        }
        ++runs;
        ops.insert(c.op);
        if (wrong.empty()) continue;
        ++failures;
        std::printf("%s, %s, %s, %d threads: %s\n", c.op.c_str(), c.name.c_str(), level.c_str(),
                    threads, wrong.c_str());
      }
    }
  }
  std::printf("%zu ops, %d runs, %d failures;%s\n", ops.size(), runs, failures, names.c_str());
  return failures == 0 && runs > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: driver FOLDER [OP]\n");
    return 2;
  }
  try {
    return run_all(argv[1], argc == 3 ? argv[2] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "driver: %s\n", error.what());
    return 2;
  }
}
