#include "process.h"

#include <array>
#include <csignal>
#include <cstdlib>

#include <unistd.h>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>

#include "unique_fd.h"
#elif defined(__FreeBSD__)
#include <sys/param.h>
#include <sys/proc.h>
#include <sys/sysctl.h>
#include <sys/user.h>
#elif defined(__APPLE__)
#include <sys/proc.h>
#include <sys/sysctl.h>
#endif

namespace bhyve {
namespace {

#if defined(__linux__)
// The fields of /proc/<pid>/stat after the command, which is in brackets and may hold anything.
constexpr int kStateField = 0;
constexpr int kFlagsField = 6;
constexpr int kStartField = 19;

std::string fieldAfterCommand(const std::string &line, int field) {
  std::size_t start = line.rfind(')');
  for (int i = 0; i <= field && start != std::string::npos; i++)
    start = line.find(' ', start + 1);
  if (start == std::string::npos)
    return {};
  return line.substr(start + 1, line.find(' ', start + 1) - start - 1);
}

// PF_EXITING of the kernel: set before a dying process closes its first descriptor.
constexpr unsigned long kExitingFlag = 0x4;

ProcessState stateOf(const std::string &letter, const std::string &flags) {
  const bool exiting = (std::strtoul(flags.c_str(), nullptr, 10) & kExitingFlag) != 0;
  if (letter == "Z" || letter == "X" || exiting)
    return ProcessState::Zombie;
  return letter == "T" ? ProcessState::Stopped : ProcessState::Running;
}
#elif defined(__FreeBSD__)
ProcessState stateOf(char state, long flags) {
  // P_WEXIT is set before a dying process closes its first descriptor; freeing a big guest takes its time.
  if (state == SZOMB || (flags & P_WEXIT) != 0)
    return ProcessState::Zombie;
  return state == SSTOP ? ProcessState::Stopped : ProcessState::Running;
}
#elif defined(__APPLE__)
ProcessState stateOf(char state, long flags) {
  if (state == SZOMB || (flags & P_WEXIT) != 0)
    return ProcessState::Zombie;
  return state == SSTOP ? ProcessState::Stopped : ProcessState::Running;
}
#endif

} // namespace

#if defined(__linux__)
Result<ProcessStatus> processStatus(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  const UniqueFd file(retryInterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
  if (!file.valid())
    return Failure{errno == ENOENT ? ESRCH : errno, "open"};
  std::array<char, 1024> buffer{};
  const ssize_t length = retryInterrupted([&] { return ::read(file.get(), buffer.data(), buffer.size()); });
  if (length == -1)
    return failureOf("read");
  const std::string line(buffer.data(), static_cast<std::size_t>(length));
  const std::string started = fieldAfterCommand(line, kStartField);
  if (started.empty())
    return Failure{ESRCH, "read"};
  return ProcessStatus{stateOf(fieldAfterCommand(line, kStateField), fieldAfterCommand(line, kFlagsField)),
                       started};
}
#elif defined(__FreeBSD__) || defined(__APPLE__)
Result<ProcessStatus> processStatus(pid_t pid) {
  std::array<int, 4> name{CTL_KERN, KERN_PROC, KERN_PROC_PID, static_cast<int>(pid)};
  kinfo_proc process{};
  size_t size = sizeof(process);
  if (::sysctl(name.data(), static_cast<u_int>(name.size()), &process, &size, nullptr, 0) == -1)
    return failureOf("sysctl");
  if (size == 0)
    return Failure{ESRCH, "sysctl"};
#if defined(__FreeBSD__)
  const timeval started = process.ki_start;
  const ProcessState state = stateOf(process.ki_stat, process.ki_flag);
#else
  const timeval started = process.kp_proc.p_starttime;
  const ProcessState state = stateOf(process.kp_proc.p_stat, process.kp_proc.p_flag);
#endif
  return ProcessStatus{state, std::to_string(started.tv_sec) + "." + std::to_string(started.tv_usec)};
}
#else
#error "process status: FreeBSD, Linux and macOS are supported"
#endif

namespace {

// ESRCH unless the process is the one that started then.
Result<std::int64_t> compareStart(pid_t pid, const std::string &startedAt) {
  const auto status = processStatus(pid);
  if (const auto *failure = std::get_if<Failure>(&status))
    return *failure;
  if (std::get<ProcessStatus>(status).startedAt != startedAt)
    return Failure{ESRCH, "kill"};
  return 0;
}

} // namespace

#if defined(__linux__) && defined(SYS_pidfd_open) && defined(SYS_pidfd_send_signal)
Result<std::int64_t> signalProcess(pid_t pid, const std::string &startedAt, int signal) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process.valid() && errno != ENOSYS)
    return failureOf("pidfd_open");
  const auto same = compareStart(pid, startedAt);
  if (std::holds_alternative<Failure>(same))
    return same;
  const bool isHeld = process.valid();
  const long result =
      isHeld ? ::syscall(SYS_pidfd_send_signal, process.get(), signal, nullptr, 0) : ::kill(pid, signal);
  if (result == -1)
    return failureOf("kill");
  return 0;
}
#else
Result<std::int64_t> signalProcess(pid_t pid, const std::string &startedAt, int signal) {
  const auto same = compareStart(pid, startedAt);
  if (std::holds_alternative<Failure>(same))
    return same;
  if (::kill(pid, signal) == -1)
    return failureOf("kill");
  return 0;
}
#endif

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
