// What a fuzz target insists on: a broken promise ends the process, and libFuzzer keeps the input.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace bhyve::fuzz {

inline void require(bool holds, const char *what) {
  if (holds)
    return;
  static_cast<void>(std::fprintf(stderr, "broken promise: %s\n", what));
  std::abort();
}

} // namespace bhyve::fuzz
