#include "file_status.h"

#include <fcntl.h>
#include <sys/stat.h>
#if defined(__linux__)
#include <sys/sysmacros.h>
#endif

namespace bhyve {
namespace {

constexpr double kBlockSize = 512; // the unit of st_blocks on every supported system
constexpr unsigned kPermissionBits = 07777;

FileKind kindOf(unsigned mode) {
  if (S_ISREG(mode))
    return FileKind::File;
  if (S_ISDIR(mode))
    return FileKind::Directory;
  if (S_ISLNK(mode))
    return FileKind::Symlink;
  if (S_ISSOCK(mode))
    return FileKind::Socket;
  return S_ISFIFO(mode) ? FileKind::Fifo : FileKind::Other;
}

template <typename Time> double millisecondsOf(const Time &time) {
  const auto milliseconds = time.tv_nsec / 1000000; // rounded down, as an integer
  return (static_cast<double>(time.tv_sec) * 1e3) + static_cast<double>(milliseconds);
}

#if defined(__linux__)
// Use statx(), not fstat(): the oldest supported glibc has the symbol of statx(), but not that of fstat().
constexpr int kFlags = AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT;

Result<FileStatus> describe(int directory, const char *name, int flags, const char *syscall) {
  struct statx status{};
  if (::statx(directory, name, kFlags | flags, STATX_BASIC_STATS, &status) == -1)
    return failureOf(syscall);
  return FileStatus{kindOf(status.stx_mode),
                    static_cast<double>(status.stx_size),
                    static_cast<double>(status.stx_blocks) * kBlockSize,
                    millisecondsOf(status.stx_mtime),
                    makedev(status.stx_dev_major, status.stx_dev_minor),
                    status.stx_ino,
                    static_cast<double>(status.stx_nlink),
                    static_cast<double>(status.stx_uid),
                    static_cast<double>(status.stx_mode & kPermissionBits)};
}
#else
FileStatus describe(const struct stat &status) {
#ifdef __APPLE__
  const timespec modified = status.st_mtimespec;
#else
  const timespec modified = status.st_mtim;
#endif
  return FileStatus{kindOf(status.st_mode),
                    static_cast<double>(status.st_size),
                    static_cast<double>(status.st_blocks) * kBlockSize,
                    millisecondsOf(modified),
                    static_cast<std::uint64_t>(status.st_dev),
                    static_cast<std::uint64_t>(status.st_ino),
                    static_cast<double>(status.st_nlink),
                    static_cast<double>(status.st_uid),
                    static_cast<double>(status.st_mode & kPermissionBits)};
}
#endif

} // namespace

std::string identityOf(const FileStatus &status) {
  return std::to_string(status.device) + ":" + std::to_string(status.inode);
}

bool isComponent(const std::string &name) {
  return !name.empty() && name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

#if defined(__linux__)
Result<FileStatus> statusAt(int directory, const std::string &name) {
  if (!isComponent(name))
    return Failure{EINVAL, "fstatat"};
  return describe(directory, name.c_str(), 0, "fstatat");
}

Result<FileStatus> statusOf(int descriptor) {
  return describe(descriptor, "", AT_EMPTY_PATH, "fstat");
}
#else
Result<FileStatus> statusAt(int directory, const std::string &name) {
  if (!isComponent(name))
    return Failure{EINVAL, "fstatat"};
  struct stat status{};
  if (::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == -1)
    return failureOf("fstatat");
  return describe(status);
}

Result<FileStatus> statusOf(int descriptor) {
  struct stat status{};
  if (::fstat(descriptor, &status) == -1)
    return failureOf("fstat");
  return describe(status);
}
#endif

} // namespace bhyve
