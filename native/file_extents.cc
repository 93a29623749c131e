#include "file_extents.h"

#if defined(__linux__)

#include <array>
#include <cstddef>

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

namespace bhyve {
namespace {

// Bounds the memory of one call. A fragmented file needs several calls.
constexpr std::size_t kExtents = 256;
constexpr std::size_t kBytes = sizeof(struct fiemap) + (kExtents * sizeof(struct fiemap_extent));

} // namespace

Result<std::int64_t> exclusiveBytes(int descriptor) {
  // `struct fiemap` ends with an array of unknown length, so it cannot be a member of a larger struct.
  alignas(struct fiemap) std::array<unsigned char, kBytes> buffer{};
  auto *map = reinterpret_cast<struct fiemap *>(buffer.data());
  std::int64_t bytes = 0;
  std::uint64_t start = 0;
  for (;;) {
    map->fm_start = start;
    map->fm_length = FIEMAP_MAX_OFFSET - start;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = kExtents;
    if (retryInterrupted([&] { return ::ioctl(descriptor, FS_IOC_FIEMAP, map); }) == -1)
      return failureOf("ioctl");
    for (std::uint32_t i = 0; i < map->fm_mapped_extents; i++) {
      const struct fiemap_extent &extent = map->fm_extents[i];
      if ((extent.fe_flags & FIEMAP_EXTENT_SHARED) == 0)
        bytes += static_cast<std::int64_t>(extent.fe_length);
      start = extent.fe_logical + extent.fe_length;
      if ((extent.fe_flags & FIEMAP_EXTENT_LAST) != 0)
        return bytes;
    }
    // The last extent has no flag if the file was truncated between two calls.
    if (map->fm_mapped_extents == 0)
      return bytes;
  }
}

} // namespace bhyve

#endif
