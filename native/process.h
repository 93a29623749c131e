// What the system knows of a process.
#pragma once

#include <string>

#include <sys/types.h>

#include "result.h"

namespace bhyve {

// Zombie: dead, or dying past any return.
enum class ProcessState { Running, Stopped, Zombie };

struct ProcessStatus {
  ProcessState state;
  std::string startedAt; // differs between two processes that had the same pid
};

// ESRCH where there is no such process.
Result<ProcessStatus> processStatus(pid_t pid);

// Ends this process by `signal` with its default action.
[[noreturn]] void dieBy(int signal);

} // namespace bhyve
