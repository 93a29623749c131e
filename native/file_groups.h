// Reads the statuses and the first bytes of files that belong together, for many names in one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bhyve {

// A file of a group. Its name is that of the group and the suffix.
struct GroupFile {
  std::string suffix;
  std::size_t maxBytes; // how many of its first bytes are read
};

// Writes a record for each name, until the next one might not fit. Returns how many were written.
//
// A record has the values of each file, and those of the first file once more, taken after all files were
// read. The values are doubles, in the order of `field` in lib/fs/file_groups.ts. The records follow one
// another from the start of `into`, which is aligned to 8. The bytes of the files are written from its end.
std::size_t readGroups(int directory, const std::vector<std::string> &names,
                       const std::vector<GroupFile> &files, std::uint8_t *into, std::size_t length);

} // namespace bhyve
