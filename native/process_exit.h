// Waits for the end of a process that is not a child, through a descriptor. Unlike a pid, the descriptor
// never refers to a later process.
#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

#include "result.h"
#include "unique_fd.h"

namespace bhyve {

// Returns a descriptor for hasEnded(). Fails with ESRCH if the process has ended, and with ENOSYS if the
// system has no such descriptors.
Result<UniqueFd> watchProcess(pid_t pid, const std::string &startedAt);

// Returns 1 if the process has ended and its memory is free, otherwise 0. Never waits.
Result<std::int64_t> hasEnded(int watch);

} // namespace bhyve
