// Returns the status of a file by its name in a directory or by its descriptor. Does not follow links.
#pragma once

#include <cstdint>
#include <string>

#include "result.h"

namespace bhyve {

enum class FileKind { File, Directory, Symlink, Socket, Fifo, Other };

struct FileStatus {
  FileKind kind;
  double size;
  double allocatedBytes;
  double mtimeMs;
  std::uint64_t device;
  std::uint64_t inode;
  double links;
  double uid;
  double mode; // permission bits only
};

// Returns "<device>:<inode>".
std::string identityOf(const FileStatus &status);

// `name` is a single path component, as in directory.h.
Result<FileStatus> statusAt(int directory, const std::string &name);
Result<FileStatus> statusOf(int descriptor);

// Returns true if the name is not empty and contains no slash and no NUL.
bool isComponent(const std::string &name);

} // namespace bhyve
