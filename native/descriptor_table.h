// Who closes the descriptors whose numbers JavaScript has.
#pragma once

#include <map>
#include <string>

#include "file_status.h"
#include "unique_fd.h"

namespace bhyve {

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
  static std::string identityOf(int descriptor) {
    const auto status = statusOf(descriptor);
    const auto *known = std::get_if<FileStatus>(&status);
    return known == nullptr ? std::string() : known->identity;
  }

  std::map<int, std::string> owned_;
};

} // namespace bhyve
