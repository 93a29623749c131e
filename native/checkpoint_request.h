// Encodes the requests for bhyve's checkpoint socket, in one form per dialect.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bhyve {

enum class Dialect { Struct, Path, Descriptor };

// Refused exists only for `struct`: a complete request that bhyve rejects without any effect. If a connection
// closes before 104 bytes were sent, a `struct` bhyve repeats its previous request.
enum class Operation { Checkpoint, Suspend, Refused };

constexpr std::size_t kStructPathSize = 100; // with the NUL

// Returns nullopt if the dialect cannot encode the request: a path of 100 bytes or more in `struct`, or the
// operation Refused in the other dialects.
std::optional<std::vector<std::uint8_t>> encodeRequest(Dialect dialect, Operation operation,
                                                       const std::string &filename);

} // namespace bhyve
