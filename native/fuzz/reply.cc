// bhyve's answer, as lib/bhyve/reply.ts reads it: one list without descriptors, of which the text `error` is
// shown.

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
  const std::vector<std::uint8_t> answer(data, data + size);
  const auto list = bhyve::nvlist::decode(answer.data(), answer.size(), 0);
  if (!list)
    return 0;
  const auto error =
      std::find_if(list->begin(), list->end(), [](const Pair &p) { return p.name == "error"; });
  if (error != list->end()) {
    const std::string whole(answer.begin(), answer.end());
    require(whole.find(error->bytes) != std::string::npos, "what is shown is what came");
  }
  for (const Pair &pair : *list)
    require(pair.type != bhyve::nvlist::Type::Descriptor, "an answer brings no descriptors");
  require(bhyve::nvlist::encode(*list) == answer, "what is accepted re-encodes to itself");
  return 0;
}
