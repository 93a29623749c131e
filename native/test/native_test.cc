// Tests the system calls of the addon: each succeeds once and fails once, in a directory of the test. Exits
// with status 0 if every call behaved as documented and no descriptor is left open.
//
// Usage: native_test <empty directory>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../boot_identity.h"
#include "../descriptor_table.h"
#include "../directory.h"
#include "../file_extents.h"
#include "../file_groups.h"
#include "../file_status.h"
#include "../process.h"
#include "../simulator/server_socket.h"
#include "../unix_socket.h"

namespace {

using bhyve::Failure;
using bhyve::Result;
using bhyve::UniqueFd;

void require(bool holds, const char *what) {
  if (holds)
    return;
  static_cast<void>(std::fprintf(stderr, "failed: %s (errno %d)\n", what, errno));
  std::abort();
}

template <typename T> T valueOf(Result<T> result, const char *what) {
  require(std::holds_alternative<T>(result), what);
  return std::move(std::get<T>(result));
}

template <typename T> void failsWith(const Result<T> &result, int error, const char *what) {
  const auto *failure = std::get_if<Failure>(&result);
  require(failure != nullptr && failure->error == error, what);
}

// Returns the lowest free descriptor. The test must not change it, otherwise a descriptor was left open.
int lowestFree() {
  const UniqueFd probe(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return probe.get();
}

void testDirectories(int directory) {
  valueOf(bhyve::makeDirectoryAt(directory, "sub", 0700), "mkdirat");
  failsWith(bhyve::makeDirectoryAt(directory, "sub", 0700), EEXIST, "mkdirat of an existing directory");
  failsWith(bhyve::makeDirectoryAt(directory, "a/b", 0700), EINVAL, "mkdirat of a name with a slash");
  const UniqueFd sub = valueOf(bhyve::openAt(directory, "sub", O_RDONLY | O_DIRECTORY, 0), "openat");
  require((::fcntl(sub.get(), F_GETFD) & FD_CLOEXEC) != 0, "openat sets close-on-exec");
  {
    const UniqueFd file =
        valueOf(bhyve::openAt(directory, "file", O_WRONLY | O_CREAT | O_EXCL, 0600), "create");
    require(::write(file.get(), "text", 4) == 4, "write");
    valueOf(bhyve::syncDescriptor(file.get()), "fsync");
  }
  failsWith(bhyve::openAt(directory, "none", O_RDONLY, 0), ENOENT, "openat of a missing file");
  valueOf(bhyve::renameAt(directory, "file", sub.get(), "moved"), "renameat");
  failsWith(bhyve::renameAt(directory, "file", sub.get(), "moved"), ENOENT, "renameat of a missing file");
  require(valueOf(bhyve::readDirectory(sub.get(), 0), "readdir") == std::string("moved\0", 6),
          "readdir returns one name");
  failsWith(bhyve::readDirectory(-1, 0), EBADF, "readdir of an invalid descriptor");
  const auto status = valueOf(bhyve::statusAt(sub.get(), "moved"), "fstatat");
  require(status.kind == bhyve::FileKind::File && status.size == 4, "fstatat returns the kind and size");
  failsWith(bhyve::statusAt(sub.get(), "none"), ENOENT, "fstatat of a missing file");
  require(valueOf(bhyve::freeSpace(directory), "fstatvfs") >= 0, "free space is not negative");
  failsWith(bhyve::isTmpfs(-1), EBADF, "fstatfs of an invalid descriptor");
  failsWith(bhyve::removeDirectoryAt(directory, "sub"), ENOTEMPTY, "rmdir of a directory that is not empty");
  valueOf(bhyve::unlinkAt(sub.get(), "moved"), "unlinkat");
  valueOf(bhyve::removeDirectoryAt(directory, "sub"), "rmdir");
}

void testGroups(int directory) {
  constexpr std::size_t kValues = 9;
  constexpr std::size_t kOffset = 8;
  const std::vector<bhyve::GroupFile> files{{"", 4}, {".x", 64}};
  for (const char *name : {"one", "one.x", "linked.x"}) {
    const UniqueFd file =
        valueOf(bhyve::openAt(directory, name, O_WRONLY | O_CREAT | O_EXCL, 0600), "create");
    require(::write(file.get(), "content", 7) == 7, "write");
  }
  require(::symlinkat("one", directory, "linked") == 0, "symlinkat");
  require(::mkfifoat(directory, "fifo", 0600) == 0, "mkfifoat");
  std::vector<double> into(512);
  auto *bytes = reinterpret_cast<std::uint8_t *>(into.data());
  const std::size_t length = into.size() * sizeof(double);
  const std::vector<std::string> names{"one", "none", "linked", "fifo", "a/b"};
  require(bhyve::readGroups(directory, names, files, bytes, 600) == 2, "the third group might not fit");
  require(bhyve::readGroups(directory, names, {}, bytes, length) == 0, "a group without files");
  require(bhyve::readGroups(directory, names, files, bytes, length) == names.size(), "all groups fit");
  const auto valueAt = [&](std::size_t group, std::size_t file, std::size_t value) {
    return into.at((((group * (files.size() + 1)) + file) * kValues) + value);
  };
  const std::array<double, 5> states{1, 0, -1, -1, -1};
  for (std::size_t i = 0; i < states.size(); i++)
    require(valueAt(i, 0, 0) == states.at(i) && valueAt(i, 2, 0) == states.at(i), "the state of a file");
  require(valueAt(0, 0, 1) == 7 && valueAt(1, 1, 0) == 0, "the size of a file, and an absent file");
  const auto bytesAt = [&](std::size_t group, std::size_t file) {
    return bytes + static_cast<std::size_t>(valueAt(group, file, kOffset));
  };
  require(std::memcmp(bytesAt(0, 0), "cont", 4) == 0, "the first bytes of a file");
  require(std::memcmp(bytesAt(2, 1), "content", 7) == 0, "a short file is read completely");
  for (const char *name : {"one", "one.x", "linked", "linked.x", "fifo"})
    valueOf(bhyve::unlinkAt(directory, name), "unlinkat");
}

#if defined(__linux__)
void testExtents(int directory) {
  const UniqueFd file =
      valueOf(bhyve::openAt(directory, "extents", O_RDWR | O_CREAT | O_EXCL, 0600), "create");
  const std::string bytes(65536, 'x');
  require(::pwrite(file.get(), bytes.data(), bytes.size(), 1 << 20) == 65536, "write behind a hole");
  const auto result = bhyve::exclusiveBytes(file.get());
  if (const auto *failure = std::get_if<Failure>(&result))
    require(failure->error == EOPNOTSUPP || failure->error == ENOTTY, "the file system reports no blocks");
  else
    require(std::get<std::int64_t>(result) == 65536, "the hole does not count");
  failsWith(bhyve::exclusiveBytes(-1), EBADF, "blocks of an invalid descriptor");
  valueOf(bhyve::unlinkAt(directory, "extents"), "unlinkat");
}
#endif

void testCounts() {
  require(valueOf(bhyve::descriptorLimit(), "getrlimit") >= 16, "the limit is at least 16");
  const auto before = valueOf(bhyve::openDescriptors(), "open descriptors");
  const UniqueFd one = valueOf(bhyve::openPath("/dev/null", O_RDONLY), "open");
  require(valueOf(bhyve::openDescriptors(), "open descriptors") == before + 1, "one more descriptor is open");
}

void testLocks(int directory, const std::string &path) {
  const UniqueFd other = valueOf(bhyve::openPath(path, O_RDONLY | O_DIRECTORY), "open");
  require(valueOf(bhyve::lockDescriptor(directory, bhyve::LockMode::Exclusive), "flock") == 1,
          "an exclusive lock is acquired");
  require(valueOf(bhyve::lockDescriptor(other.get(), bhyve::LockMode::Shared), "flock") == 0,
          "a locked file is busy");
  valueOf(bhyve::unlockDescriptor(directory), "unlock");
  require(valueOf(bhyve::lockDescriptor(other.get(), bhyve::LockMode::Shared), "flock") == 1,
          "an unlocked file can be locked");
  failsWith(bhyve::lockDescriptor(-1, bhyve::LockMode::Shared), EBADF, "flock of an invalid descriptor");
}

void testSockets(int directory, const std::string &path) {
  const std::string socketPath = path + "/socket";
  failsWith(bhyve::connectStream(socketPath), ENOENT, "connect to a missing socket");
  failsWith(bhyve::connectStream(std::string(200, 'x')), ENAMETOOLONG, "connect to a path that is too long");
  const UniqueFd listener = valueOf(bhyve::listenStream(socketPath, 1), "listen");
  failsWith(bhyve::listenStream(socketPath, 1), EADDRINUSE, "listen on an existing path");
  failsWith(bhyve::acceptConnection(listener.get()), EAGAIN, "accept without a connection");
  const UniqueFd client = valueOf(bhyve::connectStream(socketPath), "connect");
  require(valueOf(bhyve::peerOf(client.get()), "peer").uid == ::geteuid(),
          "the peer has the uid of the listener");
  require(valueOf(bhyve::pollReadable({listener.get()}, 1000), "poll").size() == 1,
          "poll reports the connection");
  const UniqueFd server = valueOf(bhyve::acceptConnection(listener.get()), "accept");

  const std::array<std::uint8_t, 3> bytes{1, 2, 3};
  require(valueOf(bhyve::sendBytes(client.get(), bytes.data(), bytes.size()), "send") == 3,
          "send sends all bytes");
  require(valueOf(bhyve::receiveBytes(server.get(), 10), "recv").size() == 3, "recv returns all bytes");
  failsWith(bhyve::receiveBytes(server.get(), 10), EAGAIN, "recv without more bytes");
  valueOf(bhyve::sendDescriptor(client.get(), directory), "sendmsg");
  failsWith(bhyve::sendDescriptor(client.get(), -1), EBADF, "sendmsg of an invalid descriptor");
  auto received = valueOf(bhyve::receiveDescriptors(server.get(), 1), "recvmsg");
  require(received.descriptors.size() == 1 && !received.truncated, "recvmsg returns one descriptor");
  require((::fcntl(received.descriptors[0].get(), F_GETFD) & FD_CLOEXEC) != 0, "recvmsg sets close-on-exec");
  valueOf(bhyve::shutdownWrite(client.get()), "shutdown");
  require(valueOf(bhyve::receiveBytes(server.get(), 10), "recv").empty(),
          "recv after shutdown returns the end of the stream");
  valueOf(bhyve::unlinkAt(directory, "socket"), "unlink");
}

void testProcesses() {
  const auto status = valueOf(bhyve::processStatus(::getpid()), "process status");
  require(status.state == bhyve::ProcessState::Running && !status.startedAt.empty(),
          "this process is running");
  require(status.parent == ::getppid(), "the parent of this process");
#if !defined(__APPLE__)
  const auto words = valueOf(bhyve::processArguments(::getpid()), "process arguments");
  require(!words.empty() && words.back() == '\0', "a NUL after each word");
#endif
  valueOf(bhyve::signalProcess(::getpid(), status.startedAt, 0), "signal");
  failsWith(bhyve::signalProcess(::getpid(), "another time", 0), ESRCH,
            "signal to another process with this pid");
  failsWith(bhyve::processStatus(1 << 30), ESRCH, "status of a missing process");
#if defined(__linux__)
  failsWith(bhyve::processArguments(1 << 30), ESRCH, "arguments of a missing process");
#endif
#if defined(__linux__)
  const auto boot = valueOf(bhyve::bootIdentity(), "boot identity");
  require(boot.size() == 36 && boot == valueOf(bhyve::bootIdentity(), "boot identity"),
          "the boot identity is constant");
#endif
}

void testOwnership(int directory) {
  bhyve::DescriptorTable table;
  const int kept = table.own(valueOf(bhyve::duplicate(directory), "dup"));
  const int closed = table.own(valueOf(bhyve::duplicate(directory), "dup"));
  const int given = table.own(valueOf(bhyve::duplicate(directory), "dup"));
  require(table.size() == 3 && kept != closed, "the table owns three descriptors");
  require(table.close(closed) && !table.close(closed), "a descriptor is closed only once");
  table.disown(given);
  const UniqueFd owner(given);
  require(table.size() == 1, "one descriptor remains for the destructor");
}

void testWorkingDirectory(const std::string &path) {
  const UniqueFd before = valueOf(bhyve::openPath(".", O_RDONLY | O_DIRECTORY), "open");
  require(valueOf(bhyve::hasWorkingDirectory(), "getcwd") == 1, "the working directory exists");
  const std::string gone = path + "/gone";
  require(::mkdir(gone.c_str(), 0700) == 0, "mkdir");
  const UniqueFd removed = valueOf(bhyve::openPath(gone, O_RDONLY | O_DIRECTORY), "open");
  require(::rmdir(gone.c_str()) == 0, "rmdir");
  valueOf(bhyve::enterDirectory(removed.get()), "fchdir");
  require(valueOf(bhyve::hasWorkingDirectory(), "getcwd") == 0, "the working directory was removed");
  valueOf(bhyve::enterDirectory(before.get()), "fchdir");
  failsWith(bhyve::enterDirectory(-1), EBADF, "fchdir to an invalid descriptor");
}

} // namespace

int main(int count, char **arguments) {
  if (count != 2)
    return 2;
  const std::string path = arguments[1];
  const int before = lowestFree();
  {
    const UniqueFd directory = valueOf(bhyve::openPath(path, O_RDONLY | O_DIRECTORY), "open");
    failsWith(bhyve::openPath(path + "/none", O_RDONLY), ENOENT, "open of a missing directory");
    testDirectories(directory.get());
    testGroups(directory.get());
#if defined(__linux__)
    testExtents(directory.get());
#endif
    testLocks(directory.get(), path);
    testSockets(directory.get(), path);
    testOwnership(directory.get());
    testWorkingDirectory(path);
  }
  testProcesses();
  testCounts();
  require(lowestFree() == before, "no descriptor is left open");
  static_cast<void>(std::printf("native_test: ok\n"));
  return 0;
}
