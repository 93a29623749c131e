// The client side of bhyve's socket. No call here waits for the peer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <sys/un.h>

#include "result.h"
#include "unique_fd.h"

namespace bhyve {

// Without the terminating NUL. Older systems truncate a path that fills sun_path.
constexpr std::size_t kSocketPathCapacity = sizeof(sockaddr_un::sun_path) - 1;

struct Peer {
  std::int64_t uid;
  std::int64_t pid; // -1 if the system does not report it
};

// Returns a close-on-exec, non-blocking socket that never raises SIGPIPE.
Result<UniqueFd> makeSocket(int type);
Result<sockaddr_un> socketAddress(const std::string &path);

Result<UniqueFd> connectStream(const std::string &path);
Result<Peer> peerOf(int socket);
Result<std::int64_t> sendBytes(int socket, const std::uint8_t *bytes, std::size_t size);
Result<std::int64_t> sendDescriptor(int socket, int descriptor);
Result<std::int64_t> shutdownWrite(int socket);

} // namespace bhyve
