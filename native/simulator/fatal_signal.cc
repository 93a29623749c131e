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
  // Reached only if the default action of the signal does not end the process.
  std::abort();
}

} // namespace bhyve
