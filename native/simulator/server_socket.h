// The server side of a socket. The simulator uses it to receive a request in the same way as bhyve.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../result.h"
#include "../unique_fd.h"

namespace bhyve {

struct ReceivedDescriptors {
  std::int64_t bytes = 0;
  bool truncated = false; // more control data was sent than fits
  std::vector<UniqueFd> descriptors;
};

Result<UniqueFd> listenStream(const std::string &path, int backlog);
Result<UniqueFd> bindDatagram(const std::string &path);
Result<UniqueFd> acceptConnection(int listener);
// Calls recv(), which discards descriptors sent with the bytes, as in bhyve.
Result<std::vector<std::uint8_t>> receiveBytes(int socket, std::size_t length);
Result<ReceivedDescriptors> receiveDescriptors(int socket, std::size_t expected);
Result<std::vector<int>> pollReadable(const std::vector<int> &descriptors, int timeoutMs);

} // namespace bhyve
