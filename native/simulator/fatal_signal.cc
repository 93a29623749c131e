#include "fatal_signal.h"

#include <csignal>
#include <cstdlib>

#include <unistd.h>

namespace bhyve {

void dieBy(int signal) {
  static_cast<void>(std::signal(signal, SIG_DFL));
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, signal);
  ::sigprocmask(SIG_UNBLOCK, &only, nullptr);
  ::kill(::getpid(), signal);
  // Reached only where the signal's default action is not to end the process.
  std::abort();
}

} // namespace bhyve
