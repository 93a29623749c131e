// Waiting for the end of a process that is not ours, by a descriptor that no later process can be taken for.
#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

#include "result.h"
#include "unique_fd.h"

namespace bhyve {

// A descriptor that hasEnded() can ask. ESRCH where that process has ended; ENOSYS where the system has none.
Result<UniqueFd> watchProcess(pid_t pid, const std::string &startedAt);

// 1 once the process has ended and its memory is free, else 0. Never waits.
Result<std::int64_t> hasEnded(int watch);

} // namespace bhyve
