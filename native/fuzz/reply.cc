// Decodes bhyve's reply in the same way as lib/bhyve/reply.ts: one list without descriptors. The library
// shows the string `error`.

#include <algorithm>

#include "../nvlist.h"
#include "list_mutator.h"
#include "require.h"

namespace {

using bhyve::fuzz::require;
using bhyve::nvlist::Pair;

} // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t *data, std::size_t size, std::size_t maxSize,
                                               unsigned seed) {
  return bhyve::fuzz::mutateList(data, size, maxSize, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const std::vector<std::uint8_t> reply(data, data + size);
  const auto list = bhyve::nvlist::decode(reply.data(), reply.size(), 0);
  if (!list)
    return 0;
  const auto error =
      std::find_if(list->begin(), list->end(), [](const Pair &p) { return p.name == "error"; });
  if (error != list->end()) {
    const std::string text(reply.begin(), reply.end());
    require(text.find(error->bytes) != std::string::npos, "the error is part of the reply");
  }
  for (const Pair &pair : *list)
    require(pair.type != bhyve::nvlist::Type::Descriptor, "a reply has no descriptors");
  require(bhyve::nvlist::encode(*list) == reply, "an accepted list re-encodes to the same bytes");
  return 0;
}
