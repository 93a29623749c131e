#include "process.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>

#include <sys/resource.h>
#include <unistd.h>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "directory.h"

#include "unique_fd.h"
#elif defined(__FreeBSD__)
#include <sys/param.h>
#include <sys/proc.h>
#include <sys/sysctl.h>
#include <sys/time.h>
#include <sys/user.h>
#elif defined(__APPLE__)
#include <vector>

#include <libproc.h>
#include <sys/proc.h>
#include <sys/proc_info.h>
#include <sys/sysctl.h>
#endif

namespace bhyve {
namespace {

#if !defined(__APPLE__)
constexpr std::size_t kMaxArgumentBytes = 65'536;
#endif

#if defined(__linux__)
// The fields of /proc/<pid>/stat after the command. The command is in parentheses and may contain any
// character.
constexpr int kStateField = 0;
constexpr int kParentField = 1;
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

// The kernel's PF_EXITING. It is set before an exiting process closes its first descriptor.
constexpr unsigned long kExitingFlag = 0x4;

ProcessState stateOf(const std::string &letter, const std::string &flags) {
  const bool exiting = (std::strtoul(flags.c_str(), nullptr, 10) & kExitingFlag) != 0;
  if (letter == "Z" || letter == "X" || exiting)
    return ProcessState::Zombie;
  return letter == "T" ? ProcessState::Stopped : ProcessState::Running;
}
#elif defined(__FreeBSD__)
ProcessState stateOf(char state, long flags) {
  // P_WEXIT is set before an exiting process closes its first descriptor. Freeing a large guest takes time.
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
  const auto parent = std::strtol(fieldAfterCommand(line, kParentField).c_str(), nullptr, 10);
  return ProcessStatus{stateOf(fieldAfterCommand(line, kStateField), fieldAfterCommand(line, kFlagsField)),
                       started, static_cast<pid_t>(parent)};
}

Result<std::string> processArguments(pid_t pid) {
  const std::string source = "/proc/" + std::to_string(pid) + "/cmdline";
  const UniqueFd file(retryInterrupted([&] { return ::open(source.c_str(), O_RDONLY | O_CLOEXEC); }));
  if (!file.valid())
    return Failure{errno == ENOENT ? ESRCH : errno, "open"};
  std::string words(kMaxArgumentBytes, '\0');
  const ssize_t length = retryInterrupted([&] { return ::read(file.get(), words.data(), words.size()); });
  if (length == -1)
    return failureOf("read");
  words.resize(static_cast<std::size_t>(length));
  return words;
}
#elif defined(__FreeBSD__) || defined(__APPLE__)
namespace {

Result<kinfo_proc> processInfo(pid_t pid) {
  std::array<int, 4> name{CTL_KERN, KERN_PROC, KERN_PROC_PID, static_cast<int>(pid)};
  kinfo_proc process{};
  size_t size = sizeof(process);
  if (::sysctl(name.data(), static_cast<u_int>(name.size()), &process, &size, nullptr, 0) == -1)
    return failureOf("sysctl");
  if (size == 0)
    return Failure{ESRCH, "sysctl"};
  return process;
}

} // namespace

#if defined(__FreeBSD__)
namespace {

// The kernel stores the start of a process relative to the boot. sysctl() adds the time of the boot, which
// changes when the clock is set. sinceBoot() subtracts the time of the boot again, so that the result is
// constant during the life of the process.
Result<timeval> bootTime() {
  std::array<int, 2> name{CTL_KERN, KERN_BOOTTIME};
  timeval time{};
  size_t size = sizeof(time);
  if (::sysctl(name.data(), static_cast<u_int>(name.size()), &time, &size, nullptr, 0) == -1)
    return failureOf("sysctl");
  return time;
}

std::string sinceBoot(const timeval &start, const timeval &boot) {
  const std::int64_t microseconds = (static_cast<std::int64_t>(start.tv_sec) - boot.tv_sec) * 1'000'000 +
                                    (static_cast<std::int64_t>(start.tv_usec) - boot.tv_usec);
  return std::to_string(microseconds);
}

constexpr int kMaxAttempts = 100;

} // namespace

Result<ProcessStatus> processStatus(pid_t pid) {
  for (int attempt = 0; attempt < kMaxAttempts; attempt++) {
    const auto before = bootTime();
    const auto process = processInfo(pid);
    const auto after = bootTime();
    if (const auto *failure = std::get_if<Failure>(&process))
      return *failure;
    for (const auto *time : {&before, &after})
      if (const auto *failure = std::get_if<Failure>(time))
        return *failure;
    const auto &boot = std::get<timeval>(before);
    // The clock was set in between.
    if (!timercmp(&boot, &std::get<timeval>(after), ==))
      continue;
    const auto &info = std::get<kinfo_proc>(process);
    return ProcessStatus{stateOf(info.ki_stat, info.ki_flag), sinceBoot(info.ki_start, boot), info.ki_ppid};
  }
  return Failure{EAGAIN, "sysctl"};
}

Result<std::string> processArguments(pid_t pid) {
  std::array<int, 4> name{CTL_KERN, KERN_PROC, KERN_PROC_ARGS, static_cast<int>(pid)};
  std::string words(kMaxArgumentBytes, '\0');
  size_t size = words.size();
  // ENOMEM: the buffer has the first words of a longer command line.
  if (::sysctl(name.data(), static_cast<u_int>(name.size()), words.data(), &size, nullptr, 0) == -1 &&
      errno != ENOMEM)
    return failureOf("sysctl");
  words.resize(std::min(size, words.size()));
  return words;
}
#else
Result<ProcessStatus> processStatus(pid_t pid) {
  const auto process = processInfo(pid);
  if (const auto *failure = std::get_if<Failure>(&process))
    return *failure;
  const auto &info = std::get<kinfo_proc>(process);
  const timeval started = info.kp_proc.p_starttime;
  return ProcessStatus{stateOf(info.kp_proc.p_stat, info.kp_proc.p_flag),
                       std::to_string(started.tv_sec) + "." + std::to_string(started.tv_usec),
                       info.kp_eproc.e_ppid};
}

// macOS runs only the simulator.
Result<std::string> processArguments(pid_t /*pid*/) {
  return std::string();
}
#endif
#else
#error "process status: FreeBSD, Linux and macOS are supported"
#endif

namespace {

// Fails with ESRCH unless the process with this pid started at `startedAt`.
Result<std::int64_t> checkStart(pid_t pid, const std::string &startedAt) {
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
  const auto checked = checkStart(pid, startedAt);
  if (std::holds_alternative<Failure>(checked))
    return checked;
  const bool hasPidfd = process.valid();
  const long result =
      hasPidfd ? ::syscall(SYS_pidfd_send_signal, process.get(), signal, nullptr, 0) : ::kill(pid, signal);
  if (result == -1)
    return failureOf("kill");
  return 0;
}
#else
Result<std::int64_t> signalProcess(pid_t pid, const std::string &startedAt, int signal) {
  const auto checked = checkStart(pid, startedAt);
  if (std::holds_alternative<Failure>(checked))
    return checked;
  if (::kill(pid, signal) == -1)
    return failureOf("kill");
  return 0;
}
#endif

namespace {

// Replaces RLIM_INFINITY and numbers that a double cannot hold. No process opens this many descriptors.
constexpr rlim_t kMostDescriptors = 1U << 30U;

} // namespace

Result<std::int64_t> descriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == -1)
    return failureOf("getrlimit");
  if (limit.rlim_cur > kMostDescriptors)
    return static_cast<std::int64_t>(kMostDescriptors);
#if defined(__FreeBSD__) || defined(__APPLE__)
  // kern.maxfilesperproc may be lower.
  const auto size = static_cast<rlim_t>(::getdtablesize());
  if (size < limit.rlim_cur)
    return static_cast<std::int64_t>(size);
#endif
  return static_cast<std::int64_t>(limit.rlim_cur);
}

#if defined(__linux__)
Result<std::int64_t> openDescriptors() {
  constexpr const char *kDirectory = "/proc/self/fd";
  struct statx status{};
  // Since Linux 6.2, the size of the directory is the number of descriptors. Before, it is 0. Use statx()
  // because stat() needs glibc 2.33.
  if (::statx(AT_FDCWD, kDirectory, 0, STATX_SIZE, &status) == 0 && status.stx_size > 0)
    return static_cast<std::int64_t>(status.stx_size);
  const UniqueFd directory(
      retryInterrupted([&] { return ::open(kDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!directory.valid())
    return failureOf("open");
  const auto names = readDirectory(directory.get(), 0);
  if (const auto *failure = std::get_if<Failure>(&names))
    return *failure;
  const auto &text = std::get<std::string>(names);
  // Do not count the descriptor opened here and the one opened by readDirectory().
  return static_cast<std::int64_t>(std::count(text.begin(), text.end(), '\0')) - 2;
}
#elif defined(__FreeBSD__)
// Do not read /dev/fd: it lists only 0 to 2 unless fdescfs is mounted there.
Result<std::int64_t> openDescriptors() {
  std::array<int, 4> name{CTL_KERN, KERN_PROC, KERN_PROC_NFDS, 0};
  int count = 0;
  size_t size = sizeof(count);
  if (::sysctl(name.data(), static_cast<u_int>(name.size()), &count, &size, nullptr, 0) == -1)
    return failureOf("sysctl");
  return count;
}
#else
Result<std::int64_t> openDescriptors() {
  const int most = ::proc_pidinfo(::getpid(), PROC_PIDLISTFDS, 0, nullptr, 0);
  if (most <= 0)
    return failureOf("proc_pidinfo");
  std::vector<char> descriptors(static_cast<size_t>(most));
  const int filled = ::proc_pidinfo(::getpid(), PROC_PIDLISTFDS, 0, descriptors.data(), most);
  if (filled <= 0)
    return failureOf("proc_pidinfo");
  return filled / static_cast<int>(PROC_PIDLISTFD_SIZE);
}
#endif

Result<std::int64_t> hasWorkingDirectory() {
  std::array<char, 4096> path{};
  // ERANGE: the working directory exists, but its path is longer than the buffer.
  if (::getcwd(path.data(), path.size()) != nullptr || errno == ERANGE)
    return 1;
  if (errno == ENOENT)
    return 0;
  return failureOf("getcwd");
}

Result<std::int64_t> enterDirectory(int directory) {
  if (::fchdir(directory) == -1)
    return failureOf("fchdir");
  return 0;
}

} // namespace bhyve
