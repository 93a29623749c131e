#include "directory.h"

#include <memory>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#if defined(__linux__)
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#else
#include <algorithm>
#include <cstring>

#include <sys/mount.h>
#include <sys/param.h>
#endif
#include <unistd.h>

#include "file_status.h"

namespace bhyve {
namespace {

Result<std::int64_t> resultOf(int result, const char *syscall) {
  if (result == -1)
    return failureOf(syscall);
  return 0;
}

struct DirectoryCloser {
  void operator()(DIR *directory) const noexcept { ::closedir(directory); }
};
using DirectoryStream = std::unique_ptr<DIR, DirectoryCloser>;

bool isDots(const char *name) {
  return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

} // namespace

Result<UniqueFd> openPath(const std::string &path, int flags) {
  UniqueFd opened(retryInterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC); }));
  if (!opened.valid())
    return failureOf("open");
  return opened;
}

Result<UniqueFd> openAt(int directory, const std::string &name, int flags, int mode) {
  if (!isComponent(name))
    return Failure{EINVAL, "openat"};
  UniqueFd opened(retryInterrupted(
      [&] { return ::openat(directory, name.c_str(), flags | O_CLOEXEC, static_cast<mode_t>(mode)); }));
  if (!opened.valid())
    return failureOf("openat");
  return opened;
}

Result<std::int64_t> makeDirectoryAt(int directory, const std::string &name, int mode) {
  if (!isComponent(name))
    return Failure{EINVAL, "mkdirat"};
  return resultOf(::mkdirat(directory, name.c_str(), static_cast<mode_t>(mode)), "mkdirat");
}

Result<std::int64_t> renameAt(int fromDirectory, const std::string &from, int toDirectory,
                              const std::string &to) {
  if (!isComponent(from) || !isComponent(to))
    return Failure{EINVAL, "renameat"};
  return resultOf(::renameat(fromDirectory, from.c_str(), toDirectory, to.c_str()), "renameat");
}

Result<std::int64_t> unlinkAt(int directory, const std::string &name) {
  if (!isComponent(name))
    return Failure{EINVAL, "unlinkat"};
  return resultOf(::unlinkat(directory, name.c_str(), 0), "unlinkat");
}

Result<std::int64_t> removeDirectoryAt(int directory, const std::string &name) {
  if (!isComponent(name))
    return Failure{EINVAL, "unlinkat"};
  return resultOf(::unlinkat(directory, name.c_str(), AT_REMOVEDIR), "unlinkat");
}

#if defined(__FreeBSD__)
Result<std::int64_t> clearFlagsAt(int directory, const std::string &name) {
  if (!isComponent(name))
    return Failure{EINVAL, "chflagsat"};
  // A file with several links that belongs to root or to this user may be a file of the system or of this
  // process under another name. Do not change its flags.
  struct stat status{};
  if (::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode) &&
      status.st_nlink > 1 && (status.st_uid == 0 || status.st_uid == ::geteuid()))
    return 0;
  return resultOf(::chflagsat(directory, name.c_str(), 0, AT_SYMLINK_NOFOLLOW), "chflagsat");
}
#elif defined(__APPLE__)
// macOS has no chflagsat(). O_SYMLINK opens a link itself, and O_NONBLOCK opens a FIFO without waiting.
Result<std::int64_t> clearFlagsAt(int directory, const std::string &name) {
  if (!isComponent(name))
    return Failure{EINVAL, "fchflags"};
  const UniqueFd file(retryInterrupted(
      [&] { return ::openat(directory, name.c_str(), O_RDONLY | O_NONBLOCK | O_SYMLINK | O_CLOEXEC); }));
  if (!file.valid())
    return failureOf("openat");
  return resultOf(::fchflags(file.get(), 0), "fchflags");
}
#endif

Result<std::int64_t> readStartAt(int directory, const std::string &name, std::uint8_t *bytes,
                                 std::size_t length) {
  const auto opened = openAt(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (const auto *failure = std::get_if<Failure>(&opened))
    return *failure;
  const int file = std::get<UniqueFd>(opened).get();
  std::size_t filled = 0;
  while (filled < length) {
    const ssize_t count = retryInterrupted([&] { return ::read(file, bytes + filled, length - filled); });
    if (count == -1)
      return failureOf("read");
    if (count == 0)
      break;
    filled += static_cast<std::size_t>(count);
  }
  return static_cast<std::int64_t>(filled);
}

Result<std::string> readDirectory(int directory, std::size_t limit) {
  // Open a new descriptor. The stream takes ownership of its descriptor, and a duplicate would share the
  // position.
  UniqueFd own(
      retryInterrupted([&] { return ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!own.valid())
    return failureOf("openat");
  const DirectoryStream stream(::fdopendir(own.get()));
  if (!stream)
    return failureOf("fdopendir");
  static_cast<void>(own.release());
  std::string names;
  std::size_t count = 0;
  errno = 0;
  while (const dirent *entry = ::readdir(stream.get())) {
    if (!isDots(entry->d_name)) {
      names.append(entry->d_name).push_back('\0');
      if (++count == limit)
        return names;
    }
    errno = 0;
  }
  if (errno != 0)
    return failureOf("readdir");
  return names;
}

Result<std::int64_t> syncDescriptor(int descriptor) {
#ifdef __APPLE__
  // On macOS, fsync() leaves the data in the cache of the drive.
  if (::fcntl(descriptor, F_FULLFSYNC) == 0)
    return 0;
#endif
  return resultOf(retryInterrupted([&] { return ::fsync(descriptor); }), "fsync");
}

Result<std::int64_t> lockDescriptor(int descriptor, LockMode mode) {
  const int operation = (mode == LockMode::Exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB;
  if (retryInterrupted([&] { return ::flock(descriptor, operation); }) == 0)
    return 1;
  if (errno == EWOULDBLOCK)
    return 0;
  return failureOf("flock");
}

Result<std::int64_t> unlockDescriptor(int descriptor) {
  return resultOf(retryInterrupted([&] { return ::flock(descriptor, LOCK_UN); }), "flock");
}

#if defined(__linux__)
Result<double> freeSpace(int descriptor) {
  struct statvfs status{};
  if (retryInterrupted([&] { return ::fstatvfs(descriptor, &status); }) == -1)
    return failureOf("fstatvfs");
  return static_cast<double>(status.f_bavail) * static_cast<double>(status.f_frsize);
}
#else
Result<double> freeSpace(int descriptor) {
  struct statfs status{};
  if (retryInterrupted([&] { return ::fstatfs(descriptor, &status); }) == -1)
    return failureOf("fstatfs");
  // On FreeBSD, f_bavail is negative if root has used the reserve. statvfs() would return a huge number.
  const double blocks = std::max(0.0, static_cast<double>(status.f_bavail));
  return blocks * static_cast<double>(status.f_bsize);
}
#endif

Result<std::int64_t> isTmpfs(int descriptor) {
  struct statfs status{};
  if (retryInterrupted([&] { return ::fstatfs(descriptor, &status); }) == -1)
    return failureOf("fstatfs");
#if defined(__linux__)
  return status.f_type == TMPFS_MAGIC ? 1 : 0;
#else
  return std::strcmp(status.f_fstypename, "tmpfs") == 0 ? 1 : 0;
#endif
}

Result<UniqueFd> duplicate(int descriptor) {
  UniqueFd copy(::fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid())
    return failureOf("fcntl");
  return copy;
}

} // namespace bhyve
