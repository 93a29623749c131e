#include "unix_socket.h"

#include <cstring>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/types.h>
#if defined(__FreeBSD__) || defined(__APPLE__)
#include <sys/param.h>
#include <sys/ucred.h>
#endif

namespace bhyve {
namespace {

#ifdef MSG_NOSIGNAL
constexpr int kSendFlags = MSG_NOSIGNAL;
#else
constexpr int kSendFlags = 0; // macOS uses SO_NOSIGPIPE on the socket instead
#endif

#ifdef __APPLE__
Result<UniqueFd> openSocket(int type) {
  UniqueFd socket(::socket(AF_UNIX, type, 0));
  if (!socket.valid())
    return failureOf("socket");
  const int on = 1;
  if (::fcntl(socket.get(), F_SETFD, FD_CLOEXEC) == -1 || ::fcntl(socket.get(), F_SETFL, O_NONBLOCK) == -1)
    return failureOf("fcntl");
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on)) == -1)
    return failureOf("setsockopt");
  return socket;
}
#else
Result<UniqueFd> openSocket(int type) {
  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid())
    return failureOf("socket");
  return socket;
}
#endif

} // namespace

Result<UniqueFd> makeSocket(int type) {
  return openSocket(type);
}

Result<sockaddr_un> socketAddress(const std::string &path) {
  sockaddr_un address{};
  if (path.empty() || path.size() > kSocketPathCapacity)
    return Failure{ENAMETOOLONG, "connect"};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
#if defined(__FreeBSD__) || defined(__APPLE__)
  address.sun_len = static_cast<unsigned char>(SUN_LEN(&address));
#endif
  return address;
}

Result<UniqueFd> connectStream(const std::string &path) {
  auto address = socketAddress(path);
  if (auto *failure = std::get_if<Failure>(&address))
    return *failure;
  auto opened = makeSocket(SOCK_STREAM);
  if (std::holds_alternative<Failure>(opened))
    return opened;
  const auto &socket = std::get<UniqueFd>(opened);
  const auto *target = reinterpret_cast<const sockaddr *>(&std::get<sockaddr_un>(address));
  // connect() on a UNIX socket never continues in the background, so an interrupted call may be repeated.
  // EISCONN then means that the first attempt succeeded.
  const int result = retryInterrupted([&] { return ::connect(socket.get(), target, sizeof(sockaddr_un)); });
  if (result == -1 && errno != EISCONN)
    return failureOf("connect");
  return opened;
}

#if defined(__linux__)
Result<Peer> peerOf(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == -1)
    return failureOf("getsockopt");
  return Peer{credentials.uid, credentials.pid > 0 ? credentials.pid : -1};
}
#elif defined(__FreeBSD__)
Result<Peer> peerOf(int socket) {
  xucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_LOCAL, LOCAL_PEERCRED, &credentials, &size) == -1)
    return failureOf("getsockopt");
  if (credentials.cr_version != XUCRED_VERSION)
    return Failure{EINVAL, "getsockopt"};
  return Peer{credentials.cr_uid, credentials.cr_pid > 0 ? credentials.cr_pid : -1};
}
#elif defined(__APPLE__)
Result<Peer> peerOf(int socket) {
  xucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_LOCAL, LOCAL_PEERCRED, &credentials, &size) == -1)
    return failureOf("getsockopt");
  pid_t pid = -1;
  socklen_t pidSize = sizeof(pid);
  if (::getsockopt(socket, SOL_LOCAL, LOCAL_PEERPID, &pid, &pidSize) == -1)
    return failureOf("getsockopt");
  return Peer{credentials.cr_uid, pid > 0 ? pid : -1};
}
#else
#error "peer credentials: FreeBSD, Linux and macOS are supported"
#endif

Result<std::int64_t> sendBytes(int socket, const std::uint8_t *bytes, std::size_t size) {
  const ssize_t sent = retryInterrupted([&] { return ::send(socket, bytes, size, kSendFlags); });
  if (sent == -1)
    return failureOf("send");
  return static_cast<std::int64_t>(sent);
}

Result<std::int64_t> sendDescriptor(int socket, int descriptor) {
  std::uint8_t zero = 0;
  iovec carrier{&zero, sizeof(zero)};
  // The union gives the buffer the alignment that cmsghdr requires.
  union {
    cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control{};
  msghdr message{};
  message.msg_iov = &carrier;
  message.msg_iovlen = 1;
  message.msg_control = control.space;
  message.msg_controllen = sizeof(control.space);
  cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(descriptor));
  const ssize_t sent = retryInterrupted([&] { return ::sendmsg(socket, &message, kSendFlags); });
  if (sent == -1)
    return failureOf("sendmsg");
  return static_cast<std::int64_t>(sent);
}

Result<std::int64_t> shutdownWrite(int socket) {
  if (::shutdown(socket, SHUT_WR) == -1)
    return failureOf("shutdown");
  return 0;
}

} // namespace bhyve
