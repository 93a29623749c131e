// The requests bhyve's checkpoint socket takes, one form per dialect.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bhyve {

enum class Dialect { Struct, Path, Descriptor };

// Refused exists for `struct` alone: a well-formed request that bhyve answers by doing nothing. A connection
// that is closed without 104 bytes would make that bhyve repeat the request before it.
enum class Operation { Checkpoint, Suspend, Refused };

constexpr std::size_t kStructPathSize = 100; // with the NUL

// nullopt where the form has no room for it: a path of 100 bytes or more in `struct`, a refusal elsewhere.
std::optional<std::vector<std::uint8_t>> encodeRequest(Dialect dialect, Operation operation,
                                                       const std::string &filename);

} // namespace bhyve
