#include "server_socket.h"

#include <cstring>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "../unix_socket.h"

namespace bhyve {
namespace {

#ifdef MSG_CMSG_CLOEXEC
constexpr int kReceiveFlags = MSG_CMSG_CLOEXEC;
#else
constexpr int kReceiveFlags = 0; // on macOS, close-on-exec is set afterwards
#endif

Result<UniqueFd> bindSocket(const std::string &path, int type) {
  auto address = socketAddress(path);
  if (auto *failure = std::get_if<Failure>(&address))
    return Failure{failure->error, "bind"};
  auto opened = makeSocket(type);
  if (std::holds_alternative<Failure>(opened))
    return opened;
  const auto *target = reinterpret_cast<const sockaddr *>(&std::get<sockaddr_un>(address));
  if (::bind(std::get<UniqueFd>(opened).get(), target, sizeof(sockaddr_un)) == -1)
    return failureOf("bind");
  return opened;
}

void collectDescriptors(msghdr &message, ReceivedDescriptors &received) {
  for (cmsghdr *header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
      continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; i++) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(header) + (i * sizeof(int)), sizeof(int));
#ifndef MSG_CMSG_CLOEXEC
      ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
#endif
      received.descriptors.emplace_back(descriptor);
    }
  }
}

} // namespace

Result<UniqueFd> listenStream(const std::string &path, int backlog) {
  auto bound = bindSocket(path, SOCK_STREAM);
  if (auto *listener = std::get_if<UniqueFd>(&bound);
      listener != nullptr && ::listen(listener->get(), backlog) == -1)
    return failureOf("listen");
  return bound;
}

Result<UniqueFd> bindDatagram(const std::string &path) {
  return bindSocket(path, SOCK_DGRAM);
}

Result<UniqueFd> acceptConnection(int listener) {
#ifdef __APPLE__
  UniqueFd connection(retryInterrupted([&] { return ::accept(listener, nullptr, nullptr); }));
  if (connection.valid() && (::fcntl(connection.get(), F_SETFD, FD_CLOEXEC) == -1 ||
                             ::fcntl(connection.get(), F_SETFL, O_NONBLOCK) == -1))
    return failureOf("fcntl");
#else
  UniqueFd connection(
      retryInterrupted([&] { return ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); }));
#endif
  if (!connection.valid())
    return failureOf("accept");
  return connection;
}

Result<std::vector<std::uint8_t>> receiveBytes(int socket, std::size_t length) {
  std::vector<std::uint8_t> bytes(length);
  const ssize_t received = retryInterrupted([&] { return ::recv(socket, bytes.data(), length, 0); });
  if (received == -1)
    return failureOf("recv");
  bytes.resize(static_cast<std::size_t>(received));
  return bytes;
}

Result<ReceivedDescriptors> receiveDescriptors(int socket, std::size_t expected) {
  std::uint8_t carrier = 0;
  iovec vector{&carrier, sizeof(carrier)};
  std::vector<char> control(CMSG_SPACE(sizeof(int) * expected));
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = static_cast<socklen_t>(control.size());
  const ssize_t bytes = retryInterrupted([&] { return ::recvmsg(socket, &message, kReceiveFlags); });
  if (bytes == -1)
    return failureOf("recvmsg");
  ReceivedDescriptors received;
  received.bytes = bytes;
  received.truncated = (message.msg_flags & MSG_CTRUNC) != 0;
  collectDescriptors(message, received);
  return received;
}

Result<std::vector<int>> pollReadable(const std::vector<int> &descriptors, int timeoutMs) {
  std::vector<pollfd> polled;
  polled.reserve(descriptors.size());
  for (const int descriptor : descriptors)
    polled.push_back(pollfd{descriptor, POLLIN, 0});
  // Return no descriptors if the wait was interrupted. The caller polls again until its own deadline.
  if (::poll(polled.data(), static_cast<nfds_t>(polled.size()), timeoutMs) == -1 && errno != EINTR)
    return failureOf("poll");
  std::vector<int> ready;
  for (const pollfd &entry : polled) {
    if (entry.revents != 0)
      ready.push_back(entry.fd);
  }
  return ready;
}

} // namespace bhyve
