// Guest RAM in a file: where it is zero, and giving what is zero back to the file system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "result.h"

namespace bhyve {

// The longest runs of whole blocks of zeros: start and end, start and end, in bytes from `bytes` on,
// ascending. What is left behind the last whole block counts as a block too. `bytes` may stand at any
// address.
std::vector<std::uint32_t> zeroRuns(const std::uint8_t *bytes, std::size_t length, std::size_t blockBytes);

// How the file system divides this file: a hole is made of whole blocks. 0 where it makes no holes.
Result<double> holeBlockBytes(int descriptor);

// Frees a range without changing what is read there or the file's size. Fails with EOPNOTSUPP, ENOSYS or
// EINVAL where the file system cannot.
Result<std::int64_t> punchHole(int descriptor, std::int64_t offset, std::int64_t length);

// Has the system begin to write a range to the disk, without waiting for it: the sync that follows finds less
// to do. Linux only: elsewhere nothing happens. A hint: that it was taken says nothing about the data.
Result<std::int64_t> beginWriting(int descriptor, std::int64_t offset, std::int64_t length);

struct DataRange {
  double start;
  double end;
};

// The first stretch with data that ends behind `offset`; where there is none, an empty one at the file's end.
// Moves the position of the open file. Fails with EINVAL or ENOTTY where the file system keeps no such map.
Result<DataRange> dataRange(int descriptor, std::int64_t offset);

// Makes `to`, an empty file, share the blocks of `from`. Fails with EOPNOTSUPP, EXDEV, EINVAL, ENOTTY or
// ENOSYS where the file system cannot: copy the bytes then.
Result<std::int64_t> cloneFile(int from, int to);

// Nanoseconds since 1970 into the file's modification time.
Result<std::int64_t> setModifiedAt(int descriptor, std::int64_t nanoseconds);

} // namespace bhyve
