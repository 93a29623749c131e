// Checks an invariant of a fuzz target. A violation aborts the process, so that libFuzzer keeps the input.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace bhyve::fuzz {

inline void require(bool holds, const char *what) {
  if (holds)
    return;
  static_cast<void>(std::fprintf(stderr, "violated invariant: %s\n", what));
  std::abort();
}

} // namespace bhyve::fuzz
