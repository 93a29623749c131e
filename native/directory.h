// System calls relative to a directory descriptor, which Node does not have.
//
// A name is a single component: one with a slash, an empty one, or one with a NUL is refused with EINVAL
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
// Takes off what an owner may put on a file so that not even root can remove it (uchg, uunlnk).
Result<std::int64_t> clearFlagsAt(int directory, const std::string &name);
#endif
// Fills `bytes` from the start of a file; says how much there was. Never waits for a FIFO's other end.
Result<std::int64_t> readStartAt(int directory, const std::string &name, std::uint8_t *bytes,
                                 std::size_t length);
// Every name followed by a NUL byte.
Result<std::string> readDirectory(int directory, std::size_t limit);
Result<std::int64_t> syncDescriptor(int descriptor);
// 1: taken. 0: somebody else holds it. Never waits.
Result<std::int64_t> lockDescriptor(int descriptor, LockMode mode);
Result<std::int64_t> unlockDescriptor(int descriptor);
Result<double> freeSpace(int descriptor);
Result<UniqueFd> duplicate(int descriptor);

} // namespace bhyve
