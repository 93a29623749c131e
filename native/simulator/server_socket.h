// The server's end of a socket: what the simulator needs to receive a request as bhyve receives it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../result.h"
#include "../unique_fd.h"

namespace bhyve {

struct ReceivedDescriptors {
  std::int64_t bytes = 0;
  bool truncated = false; // more control data came than there was room for
  std::vector<UniqueFd> descriptors;
};

Result<UniqueFd> listenStream(const std::string &path, int backlog);
Result<UniqueFd> bindDatagram(const std::string &path);
Result<UniqueFd> acceptConnection(int listener);
// Plain recv(): descriptors that came along with the bytes are lost, as they are in bhyve.
Result<std::vector<std::uint8_t>> receiveBytes(int socket, std::size_t length);
Result<ReceivedDescriptors> receiveDescriptors(int socket, std::size_t expected);
Result<std::vector<int>> pollReadable(const std::vector<int> &descriptors, int timeoutMs);

} // namespace bhyve
