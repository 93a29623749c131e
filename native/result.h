// The result of a system call: a value, or the errno and the name of the call that failed.
#pragma once

#include <cerrno>
#include <utility>
#include <variant>

namespace bhyve {

struct Failure {
  int error;
  const char *syscall;
};

template <typename T> using Result = std::variant<T, Failure>;

inline Failure failureOf(const char *syscall) {
  return Failure{errno, syscall};
}

// Repeats a call that a signal interrupted.
template <typename Call> auto retryInterrupted(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR)
    result = call();
  return result;
}

} // namespace bhyve
