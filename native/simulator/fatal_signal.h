// Ends the process by a signal, like a bhyve whose assertion fails or that writes to a closed pipe.
#pragma once

namespace bhyve {

// Ends this process by the default action of `signal`.
[[noreturn]] void dieBy(int signal);

} // namespace bhyve
