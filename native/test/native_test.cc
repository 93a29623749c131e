// The system calls of the addon, once well and once badly each, in a folder of its own. Ends with status 0
// where every call did what it says and no descriptor is left. `native_test <empty folder>`.

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../boot_identity.h"
#include "../descriptor_table.h"
#include "../directory.h"
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

// The lowest free number: the same before and after means that nothing was left open.
int lowestFree() {
  const UniqueFd probe(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return probe.get();
}

void testDirectories(int folder) {
  valueOf(bhyve::makeDirectoryAt(folder, "sub", 0700), "mkdirat");
  failsWith(bhyve::makeDirectoryAt(folder, "sub", 0700), EEXIST, "a folder twice");
  failsWith(bhyve::makeDirectoryAt(folder, "a/b", 0700), EINVAL, "a name with a slash");
  const UniqueFd sub = valueOf(bhyve::openAt(folder, "sub", O_RDONLY | O_DIRECTORY, 0), "openat");
  require((::fcntl(sub.get(), F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec");
  {
    const UniqueFd file = valueOf(bhyve::openAt(folder, "file", O_WRONLY | O_CREAT | O_EXCL, 0600), "create");
    require(::write(file.get(), "text", 4) == 4, "write");
    valueOf(bhyve::syncDescriptor(file.get()), "fsync");
  }
  failsWith(bhyve::openAt(folder, "none", O_RDONLY, 0), ENOENT, "a file that is not there");
  valueOf(bhyve::renameAt(folder, "file", sub.get(), "moved"), "renameat");
  failsWith(bhyve::renameAt(folder, "file", sub.get(), "moved"), ENOENT, "moved twice");
  require(valueOf(bhyve::readDirectory(sub.get(), 0), "readdir") == std::string("moved\0", 6), "one name");
  failsWith(bhyve::readDirectory(-1, 0), EBADF, "no descriptor");
  const auto status = valueOf(bhyve::statusAt(sub.get(), "moved"), "fstatat");
  require(status.kind == bhyve::FileKind::File && status.size == 4, "what was written");
  failsWith(bhyve::statusAt(sub.get(), "none"), ENOENT, "no status of nothing");
  require(valueOf(bhyve::freeSpace(folder), "fstatvfs") >= 0, "free space");
  failsWith(bhyve::removeDirectoryAt(folder, "sub"), ENOTEMPTY, "a folder that is not empty");
  valueOf(bhyve::unlinkAt(sub.get(), "moved"), "unlinkat");
  valueOf(bhyve::removeDirectoryAt(folder, "sub"), "rmdir");
}

void testCounts() {
  require(valueOf(bhyve::descriptorLimit(), "getrlimit") >= 16, "a limit");
  const auto before = valueOf(bhyve::openDescriptors(), "open descriptors");
  const UniqueFd one = valueOf(bhyve::openPath("/dev/null", O_RDONLY), "open");
  require(valueOf(bhyve::openDescriptors(), "open descriptors") == before + 1, "one more");
}

void testLocks(int folder, const std::string &path) {
  const UniqueFd other = valueOf(bhyve::openPath(path, O_RDONLY | O_DIRECTORY), "open");
  require(valueOf(bhyve::lockDescriptor(folder, bhyve::LockMode::Exclusive), "flock") == 1, "taken");
  require(valueOf(bhyve::lockDescriptor(other.get(), bhyve::LockMode::Shared), "flock") == 0, "held");
  valueOf(bhyve::unlockDescriptor(folder), "unlock");
  require(valueOf(bhyve::lockDescriptor(other.get(), bhyve::LockMode::Shared), "flock") == 1, "free again");
  failsWith(bhyve::lockDescriptor(-1, bhyve::LockMode::Shared), EBADF, "no descriptor");
}

void testSockets(int folder, const std::string &path) {
  const std::string socketPath = path + "/socket";
  failsWith(bhyve::connectStream(socketPath), ENOENT, "nobody there");
  failsWith(bhyve::connectStream(std::string(200, 'x')), ENAMETOOLONG, "a path that does not fit");
  const UniqueFd listener = valueOf(bhyve::listenStream(socketPath, 1), "listen");
  failsWith(bhyve::listenStream(socketPath, 1), EADDRINUSE, "a path twice");
  failsWith(bhyve::acceptConnection(listener.get()), EAGAIN, "nobody has come");
  const UniqueFd client = valueOf(bhyve::connectStream(socketPath), "connect");
  require(valueOf(bhyve::peerOf(client.get()), "peer").uid == ::geteuid(), "we listen ourselves");
  require(valueOf(bhyve::pollReadable({listener.get()}, 1000), "poll").size() == 1, "somebody has come");
  const UniqueFd server = valueOf(bhyve::acceptConnection(listener.get()), "accept");

  const std::array<std::uint8_t, 3> bytes{1, 2, 3};
  require(valueOf(bhyve::sendBytes(client.get(), bytes.data(), bytes.size()), "send") == 3, "all of it");
  require(valueOf(bhyve::receiveBytes(server.get(), 10), "recv").size() == 3, "all of it");
  failsWith(bhyve::receiveBytes(server.get(), 10), EAGAIN, "nothing more");
  valueOf(bhyve::sendDescriptor(client.get(), folder), "sendmsg");
  failsWith(bhyve::sendDescriptor(client.get(), -1), EBADF, "no descriptor to send");
  auto received = valueOf(bhyve::receiveDescriptors(server.get(), 1), "recvmsg");
  require(received.descriptors.size() == 1 && !received.truncated, "one descriptor");
  require((::fcntl(received.descriptors[0].get(), F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec");
  valueOf(bhyve::shutdownWrite(client.get()), "shutdown");
  require(valueOf(bhyve::receiveBytes(server.get(), 10), "recv").empty(), "the end");
  valueOf(bhyve::unlinkAt(folder, "socket"), "unlink");
}

void testProcesses() {
  const auto status = valueOf(bhyve::processStatus(::getpid()), "process status");
  require(status.state == bhyve::ProcessState::Running && !status.startedAt.empty(), "we run");
  valueOf(bhyve::signalProcess(::getpid(), status.startedAt, 0), "signal");
  failsWith(bhyve::signalProcess(::getpid(), "another time", 0), ESRCH, "another process of that pid");
  failsWith(bhyve::processStatus(1 << 30), ESRCH, "no such process");
#if defined(__linux__)
  const auto boot = valueOf(bhyve::bootIdentity(), "boot identity");
  require(boot.size() == 36 && boot == valueOf(bhyve::bootIdentity(), "boot identity"), "the same boot");
#endif
}

void testOwnership(int folder) {
  bhyve::DescriptorTable table;
  const int kept = table.own(valueOf(bhyve::duplicate(folder), "dup"));
  const int closed = table.own(valueOf(bhyve::duplicate(folder), "dup"));
  const int given = table.own(valueOf(bhyve::duplicate(folder), "dup"));
  require(table.size() == 3 && kept != closed, "three");
  require(table.close(closed) && !table.close(closed), "closed once");
  table.disown(given);
  const UniqueFd owner(given);
  require(table.size() == 1, "the table closes what is left");
}

void testWorkingDirectory(const std::string &path) {
  const UniqueFd before = valueOf(bhyve::openPath(".", O_RDONLY | O_DIRECTORY), "open");
  require(valueOf(bhyve::hasWorkingDirectory(), "getcwd") == 1, "a working directory");
  const std::string gone = path + "/gone";
  require(::mkdir(gone.c_str(), 0700) == 0, "mkdir");
  const UniqueFd folder = valueOf(bhyve::openPath(gone, O_RDONLY | O_DIRECTORY), "open");
  require(::rmdir(gone.c_str()) == 0, "rmdir");
  valueOf(bhyve::enterDirectory(folder.get()), "fchdir");
  require(valueOf(bhyve::hasWorkingDirectory(), "getcwd") == 0, "it was removed");
  valueOf(bhyve::enterDirectory(before.get()), "fchdir");
  failsWith(bhyve::enterDirectory(-1), EBADF, "no descriptor");
}

} // namespace

int main(int count, char **arguments) {
  if (count != 2)
    return 2;
  const std::string path = arguments[1];
  const int before = lowestFree();
  {
    const UniqueFd folder = valueOf(bhyve::openPath(path, O_RDONLY | O_DIRECTORY), "open");
    failsWith(bhyve::openPath(path + "/none", O_RDONLY), ENOENT, "no folder");
    testDirectories(folder.get());
    testLocks(folder.get(), path);
    testSockets(folder.get(), path);
    testOwnership(folder.get());
    testWorkingDirectory(path);
  }
  testProcesses();
  testCounts();
  require(lowestFree() == before, "no descriptor is left");
  static_cast<void>(std::printf("native_test: ok\n"));
  return 0;
}
