#include "checkpoint_request.h"

#include <cstring>

#include "nvlist.h"

namespace bhyve {
namespace {

using Bytes = std::vector<std::uint8_t>;

// FreeBSD 13.0's `struct checkpoint_op`, in native byte order because both ends run on the same machine.
struct CheckpointOp {
  std::uint32_t op;
  char path[kStructPathSize];
};
static_assert(sizeof(CheckpointOp) == 104, "bhyve reads 104 bytes");

std::uint32_t operationCode(Operation operation) {
  switch (operation) {
  case Operation::Checkpoint:
    return 0;
  case Operation::Suspend:
    return 1;
  case Operation::Refused:
    return UINT32_MAX;
  }
  return UINT32_MAX;
}

std::optional<Bytes> encodeStruct(Operation operation, const std::string &path) {
  if (path.size() >= kStructPathSize)
    return std::nullopt;
  CheckpointOp request{};
  request.op = operationCode(operation);
  std::memcpy(request.path, path.data(), path.size());
  Bytes bytes(sizeof(request));
  std::memcpy(bytes.data(), &request, sizeof(request));
  return bytes;
}

std::optional<Bytes> encodeList(Dialect dialect, Operation operation, const std::string &filename) {
  if (operation == Operation::Refused)
    return std::nullopt;
  nvlist::List pairs{nvlist::Pair::string("cmd", "checkpoint"), nvlist::Pair::string("filename", filename),
                     nvlist::Pair::boolean("suspend", operation == Operation::Suspend)};
  if (dialect == Dialect::Descriptor)
    pairs.push_back(nvlist::Pair::descriptor("fddir", 0));
  return nvlist::encode(pairs);
}

} // namespace

std::optional<Bytes> encodeRequest(Dialect dialect, Operation operation, const std::string &filename) {
  return dialect == Dialect::Struct ? encodeStruct(operation, filename)
                                    : encodeList(dialect, operation, filename);
}

} // namespace bhyve
