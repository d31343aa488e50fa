// The module _cpu_level: what this CPU and its system can run, asked of the CPU itself. It is compiled for the baseline
// and loaded before any other, because a module compiled for AVX-512 may end the process while it is being loaded.
#include "common/python_module.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>

namespace {

constexpr bool has(unsigned value, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if ((value >> bit & 1u) == 0) return false;
  }
  return true;
}

// Sets of state that the system saves when it switches tasks (XCR0): without that, the registers cannot be used.
unsigned saved_state() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

const char* level() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, {27})) return "DEFAULT";  // OSXSAVE
  const bool fma_f16c = has(c, {12, 29});
  const unsigned state = saved_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return "DEFAULT";
  // The flags of CMakeLists.txt, in order: AVX2 BMI BMI2 FMA F16C; AVX-512 F, BW, DQ, VL.
  if (!fma_f16c || !has(b, {5, 3, 8}) || !has(state, {1, 2})) return "DEFAULT";
  return has(b, {16, 30, 17, 31}) && has(state, {5, 6, 7}) ? "AVX512" : "AVX2";
}

}  // namespace

#else

namespace {
const char* level() { return "DEFAULT"; }
}  // namespace

#endif

POH_PYTHON_MODULE(_cpu_level, "What this CPU can run: DEFAULT, AVX2 or AVX512", {"level", level()})
