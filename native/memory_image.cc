#include "memory_image.h"

#include <algorithm>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#if defined(__FreeBSD__)
#include <dlfcn.h>
#include <limits.h>
#elif defined(__linux__)
#include <linux/fs.h>
#include <sys/ioctl.h>
#endif
#include <unistd.h>

namespace bhyve {
namespace {

// The number of bytes that are combined before the next check whether one of them is not zero. It is large
// enough for the compiler to use several vector registers, and small enough to stop early at data.
constexpr std::size_t kStride = 256;

bool isZeroStride(const std::uint8_t *bytes) {
  std::uint64_t any = 0;
  for (std::size_t i = 0; i < kStride; i += sizeof any) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + i, sizeof word); // compiles to an unaligned load, not to a copy
    any |= word;
  }
  return any == 0;
}

bool isZero(const std::uint8_t *bytes, std::size_t length) {
  std::size_t done = 0;
  for (; done + kStride <= length; done += kStride) {
    if (!isZeroStride(bytes + done))
      return false;
  }
  return std::all_of(bytes + done, bytes + length, [](std::uint8_t byte) { return byte == 0; });
}

} // namespace

std::vector<std::uint32_t> zeroRuns(const std::uint8_t *bytes, std::size_t length, std::size_t blockBytes) {
  std::vector<std::uint32_t> runs;
  for (std::size_t start = 0; start < length; start += blockBytes) {
    const std::size_t end = std::min(start + blockBytes, length);
    if (!isZero(bytes + start, end - start))
      continue;
    if (!runs.empty() && runs.back() == start)
      runs.back() = static_cast<std::uint32_t>(end);
    else
      runs.insert(runs.end(), {static_cast<std::uint32_t>(start), static_cast<std::uint32_t>(end)});
  }
  return runs;
}

#if defined(__linux__)

Result<double> holeBlockBytes(int descriptor) {
  struct statx status{};
  if (::statx(descriptor, "", AT_EMPTY_PATH, 0, &status) == -1)
    return failureOf("fstat");
  return static_cast<double>(status.stx_blksize);
}

Result<std::int64_t> punchHole(int descriptor, std::int64_t offset, std::int64_t length) {
  constexpr int kMode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (retryInterrupted([&] { return ::fallocate(descriptor, kMode, offset, length); }) == -1)
    return failureOf("fallocate");
  return 0;
}

Result<std::int64_t> beginWriting(int descriptor, std::int64_t offset, std::int64_t length) {
  if (::sync_file_range(descriptor, offset, length, SYNC_FILE_RANGE_WRITE) == -1)
    return failureOf("sync_file_range");
  return 0;
}

#elif defined(__FreeBSD__) && defined(SPACECTL_DEALLOC) && defined(_PC_DEALLOC_PRESENT)

namespace {

// Find the symbol at run time. FreeBSD 13 does not have it, and an addon that links to it could not be
// loaded there. The raw system call would raise SIGSYS.
using Fspacectl = int (*)(int, int, const struct spacectl_range *, int, struct spacectl_range *);

Fspacectl findFspacectl() {
  return reinterpret_cast<Fspacectl>(::dlsym(RTLD_DEFAULT, "fspacectl"));
}

} // namespace

// If a file system (UFS) cannot deallocate blocks, the kernel writes zeros instead. So check this first.
Result<double> holeBlockBytes(int descriptor) {
  struct stat status{};
  if (::fstat(descriptor, &status) == -1)
    return failureOf("fstat");
  const bool able = ::fpathconf(descriptor, _PC_DEALLOC_PRESENT) == 1 && findFspacectl() != nullptr;
  return able ? static_cast<double>(status.st_blksize) : 0;
}

Result<std::int64_t> punchHole(int descriptor, std::int64_t offset, std::int64_t length) {
  const Fspacectl fspacectl = findFspacectl();
  if (fspacectl == nullptr)
    return Failure{ENOSYS, "fspacectl"};
  struct spacectl_range range{offset, length};
  // The call returns the remaining range. An interrupted call has processed a part of the range.
  while (range.r_len > 0) {
    if (fspacectl(descriptor, SPACECTL_DEALLOC, &range, 0, &range) == -1 && errno != EINTR)
      return failureOf("fspacectl");
  }
  return 0;
}

#else

Result<double> holeBlockBytes(int) {
  return 0.0;
}

Result<std::int64_t> punchHole(int, std::int64_t, std::int64_t) {
  return Failure{ENOSYS, "punchHole"};
}

#endif

#if !defined(__linux__)
Result<std::int64_t> beginWriting(int, std::int64_t, std::int64_t) {
  return 0;
}
#endif

#if defined(__linux__)
Result<std::int64_t> cloneFile(int from, int to) {
  if (::ioctl(to, FICLONE, from) == -1)
    return failureOf("ioctl");
  return 0;
}
#elif defined(__FreeBSD__) && defined(COPY_FILE_RANGE_CLONE)
Result<std::int64_t> cloneFile(int from, int to) {
  struct stat status{};
  if (::fstat(from, &status) == -1)
    return failureOf("fstat");
  off_t source = 0;
  off_t target = 0;
  while (source < status.st_size) {
    const ssize_t cloned = ::copy_file_range(from, &source, to, &target, SSIZE_MAX, COPY_FILE_RANGE_CLONE);
    if (cloned == -1 && errno != EINTR)
      return failureOf("copy_file_range");
    if (cloned == 0)
      return Failure{EIO, "copy_file_range"};
  }
  return 0;
}
#else
Result<std::int64_t> cloneFile(int, int) {
  return Failure{ENOSYS, "cloneFile"};
}
#endif

Result<DataRange> dataRange(int descriptor, std::int64_t offset) {
  const off_t start = ::lseek(descriptor, offset, SEEK_DATA);
  if (start == -1 && errno == ENXIO) {
    const off_t end = ::lseek(descriptor, 0, SEEK_END);
    if (end == -1)
      return failureOf("lseek");
    return DataRange{static_cast<double>(end), static_cast<double>(end)};
  }
  if (start == -1)
    return failureOf("lseek");
  const off_t end = ::lseek(descriptor, start, SEEK_HOLE);
  // Fails if the file was truncated between the two calls.
  if (end == -1)
    return failureOf("lseek");
  return DataRange{static_cast<double>(start), static_cast<double>(end)};
}

Result<std::int64_t> setModifiedAt(int descriptor, std::int64_t nanoseconds) {
  constexpr std::int64_t kSecond = 1000000000;
  // The nanoseconds must not be negative, even for a time before 1970.
  std::int64_t seconds = nanoseconds / kSecond;
  std::int64_t rest = nanoseconds % kSecond;
  if (rest < 0) {
    seconds -= 1;
    rest += kSecond;
  }
  struct timespec times[2]{};
  times[0].tv_nsec = UTIME_OMIT;
  times[1].tv_sec = static_cast<time_t>(seconds);
  times[1].tv_nsec = static_cast<long>(rest);
  if (::futimens(descriptor, times) == -1)
    return failureOf("futimens");
  return 0;
}

} // namespace bhyve
