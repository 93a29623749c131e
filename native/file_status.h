// What the system knows of a file, by its name in a directory or by its descriptor. Links are not followed.
#pragma once

#include <string>

#include "result.h"

namespace bhyve {

enum class FileKind { File, Directory, Symlink, Socket, Fifo, Other };

struct FileStatus {
  FileKind kind;
  double size;
  double allocatedBytes;
  double mtimeMs;
  std::string identity; // "<device>:<inode>"
  double links;
  double uid;
  double mode; // permission bits only
};

// A name is a single component, as in directory.h.
Result<FileStatus> statusAt(int directory, const std::string &name);
Result<FileStatus> statusOf(int descriptor);

// Not empty, without a slash and without a NUL.
bool isComponent(const std::string &name);

} // namespace bhyve
