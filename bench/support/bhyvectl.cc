// A rival: does what `bhyvectl --checkpoint` does. It sends the same bytes to bhyve's socket and exits. With
// a third argument it first waits for the end of the connection, which bhyvectl does not.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

template <typename Number> void put(std::string &out, Number number) {
  out.append(reinterpret_cast<const char *>(&number), sizeof number);
}

void pair(std::string &out, std::uint8_t type, const std::string &name, const std::string &data) {
  put<std::uint8_t>(out, type);
  put<std::uint16_t>(out, name.size() + 1);
  put<std::uint64_t>(out, data.size());
  put<std::uint64_t>(out, 0);
  out.append(name.c_str(), name.size() + 1).append(data);
}

int main(int argc, char **argv) {
  if (argc < 3)
    return 64;
  const std::string file = argv[2];
  const std::size_t slash = file.rfind('/');
  std::string pairs;
  pair(pairs, 4, "cmd", std::string("checkpoint\0", 11));
  pair(pairs, 4, "filename", file.substr(slash + 1) + std::string(1, '\0'));
  pair(pairs, 2, "suspend", std::string(1, '\0'));
  pair(pairs, 6, "fddir", std::string(8, '\0'));
  std::string message("\x6c\0\0", 3);
  put<std::uint64_t>(message, 1);
  put<std::uint64_t>(message, pairs.size());
  message += pairs;

  const int directory = open(file.substr(0, slash).c_str(), O_RDONLY | O_DIRECTORY);
  const int connection = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
  if (directory == -1 || connect(connection, reinterpret_cast<sockaddr *>(&address), sizeof address) == -1 ||
      send(connection, message.data(), message.size(), 0) != static_cast<ssize_t>(message.size())) {
    std::perror("bhyvectl");
    return 1;
  }
  char nothing = 0;
  iovec part{&nothing, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof directory)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr *attached = CMSG_FIRSTHDR(&header);
  attached->cmsg_level = SOL_SOCKET;
  attached->cmsg_type = SCM_RIGHTS;
  attached->cmsg_len = CMSG_LEN(sizeof directory);
  std::memcpy(CMSG_DATA(attached), &directory, sizeof directory);
  if (sendmsg(connection, &header, 0) != 1)
    return 1;
  char answer[256];
  while (argc > 3 && read(connection, answer, sizeof answer) > 0) {
  }
  return 0;
}
