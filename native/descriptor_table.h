// Owns the descriptors whose numbers were returned to JavaScript.
#pragma once

#include <map>
#include <string>

#include "file_status.h"
#include "unique_fd.h"

namespace bhyve {

// The descriptors of one Node environment. The destructor always runs when the environment ends.
//
// When JavaScript passes a descriptor to libuv, it calls disown() immediately afterwards. If the environment
// is terminated between the two steps, libuv has already closed the descriptor, and another file may have its
// number. So the destructor closes a descriptor only if it still refers to the same file.
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

  // Returns false, and closes nothing, if this table does not own the descriptor.
  bool close(int descriptor) {
    if (owned_.erase(descriptor) == 0)
      return false;
    ::close(descriptor);
    return true;
  }

  void disown(int descriptor) { owned_.erase(descriptor); }
  [[nodiscard]] size_t size() const noexcept { return owned_.size(); }

private:
  static std::string identityOf(int descriptor) {
    const auto status = statusOf(descriptor);
    const auto *known = std::get_if<FileStatus>(&status);
    return known == nullptr ? std::string() : bhyve::identityOf(*known);
  }

  std::map<int, std::string> owned_;
};

} // namespace bhyve
