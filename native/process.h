// What the system knows of a process.
#pragma once

#include <cstdint>
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

// Sends a signal to that very process, and to no later one that was given the same pid: ESRCH then. On Linux
// the process is held while it is compared; elsewhere an instant remains between the comparison and the
// signal.
Result<std::int64_t> signalProcess(pid_t pid, const std::string &startedAt, int signal);

// How many descriptors this process may have open (RLIMIT_NOFILE, and what else the system allows a process).
Result<std::int64_t> descriptorLimit();

// How many descriptors this process has open. Opens none itself where the system can count them.
Result<std::int64_t> openDescriptors();

// 1 where the working directory is still there, 0 where somebody has removed it.
Result<std::int64_t> hasWorkingDirectory();

// Makes an open directory the working directory, one that was removed too.
Result<std::int64_t> enterDirectory(int directory);

} // namespace bhyve
