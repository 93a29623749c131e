// System calls relative to a directory descriptor, which Node does not provide.
//
// A name is a single path component. An empty name or a name with a slash or a NUL is rejected with EINVAL
// before any system call. No call follows a symbolic link in its name, except openAt without O_NOFOLLOW.
#pragma once

#include <cstdint>
#include <string>

#include "result.h"
#include "unique_fd.h"

namespace bhyve {

enum class LockMode { Shared, Exclusive };

Result<UniqueFd> openPath(const std::string &path, int flags);
Result<UniqueFd> openAt(int directory, const std::string &name, int flags, int mode);
Result<std::int64_t> makeDirectoryAt(int directory, const std::string &name, int mode);
Result<std::int64_t> renameAt(int fromDirectory, const std::string &from, int toDirectory,
                              const std::string &to);
Result<std::int64_t> unlinkAt(int directory, const std::string &name);
Result<std::int64_t> removeDirectoryAt(int directory, const std::string &name);
#if defined(__FreeBSD__) || defined(__APPLE__)
// Clears the flags (uchg, uunlnk) with which an owner can prevent even root from removing a file.
Result<std::int64_t> clearFlagsAt(int directory, const std::string &name);
#endif
// Fills `bytes` from the start of a file and returns the number of bytes read. Does not block on a FIFO.
Result<std::int64_t> readStartAt(int directory, const std::string &name, std::uint8_t *bytes,
                                 std::size_t length);
// Returns the names, each followed by a NUL byte. Returns at most `limit` names, unless `limit` is 0.
Result<std::string> readDirectory(int directory, std::size_t limit);
Result<std::int64_t> syncDescriptor(int descriptor);
// Returns 1 if the lock was acquired, 0 if another process or descriptor holds it. Never waits.
Result<std::int64_t> lockDescriptor(int descriptor, LockMode mode);
Result<std::int64_t> unlockDescriptor(int descriptor);
Result<double> freeSpace(int descriptor);
// Returns 1 if the file system keeps its files in memory only.
Result<std::int64_t> isTmpfs(int descriptor);
Result<UniqueFd> duplicate(int descriptor);

} // namespace bhyve
