// An end by a signal, as a bhyve that fails an assertion or writes to nobody has it.
#pragma once

namespace bhyve {

// Ends this process by `signal` with its default action.
[[noreturn]] void dieBy(int signal);

} // namespace bhyve
