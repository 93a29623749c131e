#include "file_groups.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "directory.h"
#include "file_status.h"

namespace bhyve {
namespace {

constexpr double kRegular = 1; // a regular file with one link
constexpr double kAbsent = 0;
constexpr double kOther = -1;                                // anything else, or a failure
constexpr std::uint64_t kMaxExact = std::uint64_t{1} << 53U; // a double has all integers up to this one

struct Values {
  double state;
  double size;
  double allocatedBytes;
  double mtimeMs;
  double device;
  double inode;
  double uid;
  double mode;
  double offset; // of the bytes in the buffer
};

Values valuesAt(int directory, const std::string &name) {
  const auto result = statusAt(directory, name);
  if (const auto *failure = std::get_if<Failure>(&result))
    return {failure->error == ENOENT ? kAbsent : kOther, 0, 0, 0, 0, 0, 0, 0, 0};
  const auto &status = std::get<FileStatus>(result);
  const bool isExact = status.device <= kMaxExact && status.inode <= kMaxExact;
  const bool isRegular = status.kind == FileKind::File && status.links == 1;
  return {isRegular && isExact ? kRegular : kOther,
          status.size,
          status.allocatedBytes,
          status.mtimeMs,
          static_cast<double>(status.device),
          static_cast<double>(status.inode),
          status.uid,
          status.mode,
          0};
}

// Reads the first bytes of a file to the end of the free part of the buffer. Returns the new end of that
// part.
std::size_t readStart(int directory, const std::string &name, std::size_t maxBytes, Values &values,
                      std::uint8_t *into, std::size_t end) {
  if (values.state != kRegular || maxBytes == 0)
    return end;
  // Reading no more than the known size spares the read() that finds the end of the file.
  const auto length = static_cast<std::size_t>(std::min(values.size, static_cast<double>(maxBytes)));
  const std::size_t start = end - length;
  values.offset = static_cast<double>(start);
  // An empty file is opened as well: it may be unreadable.
  const auto read = readStartAt(directory, name, into + start, length);
  const auto *count = std::get_if<std::int64_t>(&read);
  if (count == nullptr || static_cast<std::size_t>(*count) < length)
    values.state = kOther;
  return start;
}

} // namespace

std::size_t readGroups(int directory, const std::vector<std::string> &names,
                       const std::vector<GroupFile> &files, std::uint8_t *into, std::size_t length) {
  if (files.empty())
    return 0;
  std::vector<Values> record(files.size() + 1);
  const std::size_t recordBytes = record.size() * sizeof(Values);
  std::size_t longest = recordBytes;
  for (const auto &file : files)
    longest += file.maxBytes;
  std::size_t done = 0;
  for (std::size_t start = 0, end = length; done < names.size() && start + longest <= end; done++) {
    for (std::size_t i = 0; i < files.size(); i++)
      record[i] = valuesAt(directory, names[done] + files[i].suffix);
    for (std::size_t i = 0; i < files.size(); i++)
      end = readStart(directory, names[done] + files[i].suffix, files[i].maxBytes, record[i], into, end);
    record.back() = valuesAt(directory, names[done] + files.front().suffix);
    std::memcpy(into + start, record.data(), recordBytes);
    start += recordBytes;
  }
  return done;
}

} // namespace bhyve
