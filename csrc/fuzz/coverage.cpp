// What drives call_operator.cpp where there is no libFuzzer: inputs that reach code which none before them reached are
// kept, and later ones are made from them. The compiler calls back at every edge (-fsanitize-coverage=trace-pc).
//
//   fuzz_operators INPUTS SEED [SECONDS]     a number of inputs, or as many as there is time for
//   fuzz_operators FILE                      one input again, which crash.input holds after a crash

#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

using Input = std::vector<uint8_t>;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int64_t apem_fast_answered, apem_fast_refused;

namespace {

constexpr size_t kEdges = 1 << 16, kLongest = 600;
std::array<uint8_t, kEdges> hits;  // how often each edge was passed in this input
std::array<uint8_t, kEdges> seen;  // a bit for each order of magnitude in which it ever was
Input current;

__attribute__((no_sanitize_coverage)) uint8_t magnitude(uint8_t count) {
  return count < 4 ? count : count < 8 ? 8 : count < 32 ? 16 : count < 128 ? 32 : 64;
}

// Whether something was reached that no input reached before.
__attribute__((no_sanitize_coverage)) bool look() {
  bool anything = false;
  for (size_t i = 0; i < kEdges; ++i) {
    if (hits[i] != 0) {
      const uint8_t bit = magnitude(hits[i]);
      anything = anything || (seen[i] & bit) == 0;
      seen[i] |= bit;
    }
  }
  return anything;
}

void keep_what_crashed() {
  std::ofstream("crash.input", std::ios::binary).write(reinterpret_cast<const char*>(current.data()), current.size());
}

void keep_and_abort(int) {
  keep_what_crashed();
  std::_Exit(1);
}

Input changed(const std::vector<Input>& kept, std::mt19937_64& draw) {
  const auto below = [&](size_t bound) { return bound ? draw() % bound : 0; };
  Input input = kept[below(kept.size())];
  for (size_t times = 1 + below(4); times > 0; --times) {
    switch (below(6)) {
      case 0: input.push_back(draw()); break;
      case 1: {  // the beginning of one and the end of another
        const Input& other = kept[below(kept.size())];
        const size_t at = below(std::min(input.size(), other.size()) + 1);
        input.resize(at);
        input.insert(input.end(), other.begin() + at, other.end());
        break;
      }
      case 2: input.insert(input.begin() + below(input.size() + 1), draw()); break;
      case 3:
        if (!input.empty()) {
          input.erase(input.begin() + below(input.size()));
        }
        break;
      case 4:
        if (!input.empty()) {
          input[below(input.size())] ^= 1 << below(8);
        }
        break;
      default:
        for (size_t more = below(8); more > 0 && !input.empty(); --more) {
          input[below(input.size())] = draw();
        }
    }
  }
  input.resize(std::min(input.size(), kLongest));
  return input;
}

}  // namespace

extern "C" __attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc() {
  const auto from = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  uint8_t& count = hits[(from ^ (from >> 16)) % kEdges];
  count += count < 255;
}

int main(int argc, char** argv) {
  __sanitizer_set_death_callback(&keep_what_crashed);
  std::signal(SIGABRT, &keep_and_abort);
  if (argc == 2) {
    std::ifstream file(argv[1], std::ios::binary);
    current.assign(std::istreambuf_iterator<char>(file), {});
    return LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  const int64_t inputs = std::atoll(argv[1]);
  const double seconds = argc > 3 ? std::atof(argv[3]) : 1e9;
  std::mt19937_64 draw(std::atoll(argv[2]));
  std::vector<Input> kept{Input{}};
  for (int op = 0; op < 16; ++op) {  // each operator with whatever follows, to begin with
    Input one(200);
    std::generate(one.begin(), one.end(), [&] { return draw(); });
    one[0] = op;
    kept.push_back(one);
  }
  const auto begin = std::chrono::steady_clock::now();
  int64_t done = 0;
  for (; done < inputs; ++done) {
    if (done % 64 == 0 && std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > seconds) {
      break;
    }
    current = done < static_cast<int64_t>(kept.size()) ? kept[done] : changed(kept, draw);
    hits.fill(0);
    LLVMFuzzerTestOneInput(current.data(), current.size());
    if (look()) {
      kept.push_back(current);
    }
  }
  const auto edges = std::count_if(seen.begin(), seen.end(), [](uint8_t bits) { return bits != 0; });
  std::printf("%lld %lld %lld %lld %zu\n", static_cast<long long>(done), static_cast<long long>(apem_fast_answered),
              static_cast<long long>(apem_fast_refused), static_cast<long long>(edges), kept.size());
  return 0;
}
