// Guest RAM in a file: finds its zeros and returns their blocks to the file system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "result.h"

namespace bhyve {

// Returns the maximal runs of zero blocks as pairs of start and end, ascending, in bytes relative to `bytes`.
// An incomplete block at the end counts as a block as well. `bytes` need not be aligned.
std::vector<std::uint32_t> zeroRuns(const std::uint8_t *bytes, std::size_t length, std::size_t blockBytes);

// Returns the block size of this file, because a hole consists of complete blocks. Returns 0 if the file
// system cannot create holes.
Result<double> holeBlockBytes(int descriptor);

// Frees the blocks of a range of zeros. The content and the size of the file do not change. Fails with
// EOPNOTSUPP, ENOSYS or EINVAL if the file system cannot create holes.
Result<std::int64_t> punchHole(int descriptor, std::int64_t offset, std::int64_t length);

// Starts to write a range to disk and does not wait for it, so that a later fsync has less to do. Linux only:
// on other systems it does nothing. This is a hint: success does not mean that the data is durable.
Result<std::int64_t> beginWriting(int descriptor, std::int64_t offset, std::int64_t length);

struct DataRange {
  double start;
  double end;
};

// Returns the first range with data that ends after `offset`. If there is none, returns an empty range at the
// end of the file. Changes the position of the open file. Fails with EINVAL or ENOTTY if the file system does
// not support this.
Result<DataRange> dataRange(int descriptor, std::int64_t offset);

// Makes the empty file `to` share the blocks of `from`. Fails with EOPNOTSUPP, EXDEV, EINVAL, ENOTTY or
// ENOSYS if the file system cannot do this. Then copy the bytes.
Result<std::int64_t> cloneFile(int from, int to);

// Sets the modification time of the file, in nanoseconds since 1970.
Result<std::int64_t> setModifiedAt(int descriptor, std::int64_t nanoseconds);

} // namespace bhyve
