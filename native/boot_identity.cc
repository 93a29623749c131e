#include "boot_identity.h"

#include <array>
#include <cstddef>

#if defined(__linux__)
#include <fcntl.h>
#include <unistd.h>

#include "unique_fd.h"
#elif defined(__FreeBSD__) || defined(__APPLE__)
#include <sys/types.h>

#include <sys/sysctl.h>
#endif

namespace bhyve {

#if defined(__linux__)

Result<std::string> bootIdentity() {
  const UniqueFd file(
      retryInterrupted([] { return ::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC); }));
  if (!file.valid())
    return failureOf("open");
  std::array<char, 64> text{};
  const ssize_t length = retryInterrupted([&] { return ::read(file.get(), text.data(), text.size()); });
  if (length == -1)
    return failureOf("read");
  const std::string line(text.data(), static_cast<std::size_t>(length));
  return line.substr(0, line.find('\n'));
}

#elif defined(__FreeBSD__)

Result<std::string> bootIdentity() {
  std::array<unsigned char, 64> bytes{}; // 16 today
  std::size_t length = bytes.size();
  if (::sysctlbyname("kern.boot_id", bytes.data(), &length, nullptr, 0) == -1)
    return failureOf("sysctlbyname");
  static constexpr const char *kDigits = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < length; i++) {
    text += kDigits[bytes[i] >> 4U];
    text += kDigits[bytes[i] & 15U];
  }
  return text;
}

#elif defined(__APPLE__)

Result<std::string> bootIdentity() {
  std::array<char, 64> text{};
  std::size_t length = text.size() - 1;
  if (::sysctlbyname("kern.bootsessionuuid", text.data(), &length, nullptr, 0) == -1)
    return failureOf("sysctlbyname");
  return std::string(text.data());
}

#else

Result<std::string> bootIdentity() {
  return Failure{ENOSYS, "bootIdentity"};
}

#endif

} // namespace bhyve
