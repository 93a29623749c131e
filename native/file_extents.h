// The disk space of files that share blocks with other files.
#pragma once

#include <cstdint>

#include "result.h"

namespace bhyve {

#if defined(__linux__)
// Returns the bytes of the file that occupy blocks of its own, which no other file shares. Writes dirty data
// to disk first, because only written data has blocks. Fails with EOPNOTSUPP or ENOTTY if the file system
// does not report blocks. A compressed block counts with its uncompressed size.
Result<std::int64_t> exclusiveBytes(int descriptor);
#endif

} // namespace bhyve
