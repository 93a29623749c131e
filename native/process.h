// The status of processes, signals, and the limits and the working directory of this process.
#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

#include "result.h"

namespace bhyve {

// Zombie: dead, or exiting.
enum class ProcessState { Running, Stopped, Zombie };

struct ProcessStatus {
  ProcessState state;
  std::string startedAt; // differs between two processes that had the same pid
  pid_t parent;          // 0 if the process has none, or if its parent is outside of this namespace
};

// Fails with ESRCH if the process does not exist.
Result<ProcessStatus> processStatus(pid_t pid);

// The command line of a process: its words, with a NUL after each. Cut after 64 KiB. Empty if the system does
// not report it.
Result<std::string> processArguments(pid_t pid);

// Sends a signal to the process that started at `startedAt`. Fails with ESRCH if another process now has the
// pid. On Linux, a pidfd refers to the process during the comparison. On other systems, a short time remains
// between the comparison and the signal.
Result<std::int64_t> signalProcess(pid_t pid, const std::string &startedAt, int signal);

// The maximum number of open descriptors of this process: RLIMIT_NOFILE and other limits of the system.
Result<std::int64_t> descriptorLimit();

// The number of open descriptors of this process. Opens a descriptor only if the system cannot count them.
Result<std::int64_t> openDescriptors();

// Returns 1 if the working directory exists, 0 if it was removed.
Result<std::int64_t> hasWorkingDirectory();

// Changes the working directory to an open directory, even to one that was removed.
Result<std::int64_t> enterDirectory(int directory);

} // namespace bhyve
