// Ownership of descriptors.
//
// A descriptor of this library has exactly one owner at any time:
//   UniqueFd          while native code handles it,
//   DescriptorTable   once its number was given to JavaScript (one table per Node environment).
#pragma once

#include <utility>

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

} // namespace bhyve
