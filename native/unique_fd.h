// Ownership of descriptors.
//
// A descriptor of this library has exactly one owner at any time:
//   UniqueFd          while native code handles it,
//   DescriptorTable   once its number was given to JavaScript (one table per Node environment).
#pragma once

#include <map>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

namespace bhyve {

class UniqueFd {
public:
  explicit UniqueFd(int descriptor = -1) noexcept : descriptor_(descriptor) {}
  UniqueFd(UniqueFd &&other) noexcept : descriptor_(other.release()) {}
  UniqueFd &operator=(UniqueFd &&other) noexcept {
    reset(other.release());
    return *this;
  }
  UniqueFd(const UniqueFd &) = delete;
  UniqueFd &operator=(const UniqueFd &) = delete;
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const noexcept { return descriptor_; }
  [[nodiscard]] bool valid() const noexcept { return descriptor_ >= 0; }
  [[nodiscard]] int release() noexcept { return std::exchange(descriptor_, -1); }
  void reset(int descriptor = -1) noexcept {
    // close() is not repeated on EINTR: on every system served here the descriptor is gone by then, and a
    // second close could hit a descriptor that another thread has just been given.
    if (descriptor_ >= 0)
      ::close(descriptor_);
    descriptor_ = descriptor;
  }

private:
  int descriptor_;
};

// The descriptors of one Node environment. Its destructor runs when the environment ends, however it ends.
//
// A descriptor that JavaScript hands to libuv is taken out with disown() just after libuv has it. If the
// environment is terminated between the two, libuv has closed it already and its number may belong to
// somebody else: so at the end a descriptor is closed only if it still is the file it was at the start.
class DescriptorTable {
public:
  DescriptorTable() = default;
  DescriptorTable(const DescriptorTable &) = delete;
  DescriptorTable &operator=(const DescriptorTable &) = delete;
  DescriptorTable(DescriptorTable &&) = delete;
  DescriptorTable &operator=(DescriptorTable &&) = delete;
  ~DescriptorTable() {
    for (const auto &[descriptor, identity] : owned_) {
      if (identity == identityOf(descriptor))
        ::close(descriptor);
    }
  }

  int own(UniqueFd descriptor) {
    const int number = descriptor.get();
    owned_[number] = identityOf(number);
    return descriptor.release();
  }

  // False where the descriptor is not ours: then nothing is closed.
  bool close(int descriptor) {
    if (owned_.erase(descriptor) == 0)
      return false;
    ::close(descriptor);
    return true;
  }

  void disown(int descriptor) { owned_.erase(descriptor); }
  [[nodiscard]] size_t size() const noexcept { return owned_.size(); }

private:
  using Identity = std::pair<dev_t, ino_t>;

  static Identity identityOf(int descriptor) {
    struct stat status{};
    return ::fstat(descriptor, &status) == 0 ? Identity{status.st_dev, status.st_ino} : Identity{};
  }

  std::map<int, Identity> owned_;
};

} // namespace bhyve
