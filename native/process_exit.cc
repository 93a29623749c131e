#include "process_exit.h"

#include <unistd.h>

#include "process.h"

#if defined(__linux__)
#include <poll.h>
#include <sys/syscall.h>
#elif defined(__FreeBSD__) || defined(__APPLE__)
#include <ctime>

#include <fcntl.h>
#include <sys/event.h>
#endif

namespace bhyve {
namespace {

// Fails with ESRCH unless the process with this pid started at `startedAt`. The watch already refers to a
// process, so no later process with the same pid can replace it, and the result remains valid.
Result<UniqueFd> checkedWatch(UniqueFd watch, pid_t pid, const std::string &startedAt) {
  const auto status = processStatus(pid);
  if (const auto *failure = std::get_if<Failure>(&status))
    return *failure;
  if (std::get<ProcessStatus>(status).startedAt != startedAt)
    return Failure{ESRCH, "watch"};
  return watch;
}

} // namespace

#if defined(__linux__) && defined(SYS_pidfd_open)
Result<UniqueFd> watchProcess(pid_t pid, const std::string &startedAt) {
  // pidfd_open() sets close-on-exec itself.
  UniqueFd watch(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!watch.valid())
    return failureOf("pidfd_open");
  return checkedWatch(std::move(watch), pid, startedAt);
}

Result<std::int64_t> hasEnded(int watch) {
  pollfd entry{watch, POLLIN, 0};
  const int ready = retryInterrupted([&] { return ::poll(&entry, 1, 0); });
  if (ready == -1)
    return failureOf("poll");
  return ready;
}
#elif defined(__FreeBSD__) || defined(__APPLE__)
Result<UniqueFd> watchProcess(pid_t pid, const std::string &startedAt) {
  UniqueFd watch(::kqueue());
  if (!watch.valid())
    return failureOf("kqueue");
  if (::fcntl(watch.get(), F_SETFD, FD_CLOEXEC) == -1)
    return failureOf("fcntl");
  struct kevent wanted{};
  EV_SET(&wanted, static_cast<uintptr_t>(pid), EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, nullptr);
  if (retryInterrupted([&] { return ::kevent(watch.get(), &wanted, 1, nullptr, 0, nullptr); }) == -1)
    return failureOf("kevent");
  return checkedWatch(std::move(watch), pid, startedAt);
}

Result<std::int64_t> hasEnded(int watch) {
  struct kevent seen{};
  const timespec now{0, 0};
  const int events = retryInterrupted([&] { return ::kevent(watch, nullptr, 0, &seen, 1, &now); });
  if (events == -1)
    return failureOf("kevent");
  return events;
}
#else
Result<UniqueFd> watchProcess(pid_t, const std::string &) {
  return Failure{ENOSYS, "watch"};
}

Result<std::int64_t> hasEnded(int) {
  return Failure{ENOSYS, "watch"};
}
#endif

} // namespace bhyve
