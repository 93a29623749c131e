// Ownership of descriptors.
//
// A descriptor of this library has exactly one owner at any time:
//   UniqueFd          while native code uses it,
//   DescriptorTable   after its number was returned to JavaScript (one table per Node environment).
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
    // Do not repeat close() on EINTR. On every supported system the descriptor is closed by then. A second
    // close() could close a descriptor that another thread has just opened.
    if (descriptor_ >= 0)
      ::close(descriptor_);
    descriptor_ = descriptor;
  }

private:
  int descriptor_;
};

} // namespace bhyve
