// Lists of any valid content, and the requests made of them: what encode() writes decodes to what it was
// given.

#include <algorithm>
#include <set>

#include <fuzzer/FuzzedDataProvider.h>

#include "../checkpoint_request.h"
#include "../nvlist.h"
#include "require.h"

namespace {

using bhyve::fuzz::require;
using bhyve::nvlist::List;
using bhyve::nvlist::Pair;

constexpr int kPairsMax = 12;
constexpr std::size_t kNameMax = 2047; // without the NUL
constexpr std::size_t kTextMax = 600;

std::string textOf(FuzzedDataProvider &in, std::size_t max) {
  std::string text = in.ConsumeRandomLengthString(max);
  text.erase(std::remove(text.begin(), text.end(), '\0'), text.end());
  return text;
}

Pair pairOf(FuzzedDataProvider &in, std::string name, std::uint64_t &descriptors) {
  switch (in.ConsumeIntegralInRange(0, 5)) {
  case 0:
    return Pair::boolean(std::move(name), in.ConsumeBool());
  case 1:
    return Pair::number(std::move(name), in.ConsumeIntegral<std::uint64_t>());
  case 2:
    return Pair::string(std::move(name), textOf(in, kTextMax));
  case 3:
    return Pair::descriptor(std::move(name), descriptors++);
  case 4:
    return Pair::binary(std::move(name), in.ConsumeRandomLengthString(kTextMax) + "x");
  default:
    return Pair::null(std::move(name));
  }
}

bool areEqual(const List &one, const List &other) {
  return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](const Pair &a, const Pair &b) {
    return a.name == b.name && a.type == b.type && a.scalar == b.scalar && a.bytes == b.bytes;
  });
}

void checkList(FuzzedDataProvider &in) {
  List list;
  std::set<std::string> names;
  std::uint64_t descriptors = 0;
  const int count = in.ConsumeIntegralInRange(0, kPairsMax);
  for (int i = 0; i < count; i++) {
    std::string name = textOf(in, kNameMax);
    if (names.insert(name).second)
      list.push_back(pairOf(in, std::move(name), descriptors));
  }
  const auto bytes = bhyve::nvlist::encode(list);
  const auto decoded = bhyve::nvlist::decode(bytes.data(), bytes.size(), descriptors);
  require(decoded && areEqual(*decoded, list), "what is encoded decodes to the same list");
}

// Dialects whose requests are lists; the bytes past the file's name are always the same.
void checkListRequest(const std::string &filename, bool suspend, bool withFolder) {
  const auto dialect = withFolder ? bhyve::Dialect::Descriptor : bhyve::Dialect::Path;
  const auto operation = suspend ? bhyve::Operation::Suspend : bhyve::Operation::Checkpoint;
  const auto bytes = bhyve::encodeRequest(dialect, operation, filename);
  const auto whole = bytes.value_or(std::vector<std::uint8_t>());
  const auto list = bhyve::nvlist::decode(whole.data(), whole.size(), withFolder ? 1 : 0).value_or(List());
  require(list.size() == (withFolder ? 4U : 3U), "a request is a list of its own dialect");
  require(list[1].bytes == filename, "with the name it was given");
  require(list[2].scalar == (suspend ? 1U : 0U), "and the question it was given");
}

void checkStructRequest(const std::string &filename) {
  const auto bytes = bhyve::encodeRequest(bhyve::Dialect::Struct, bhyve::Operation::Suspend, filename);
  require(bytes.has_value() == (filename.size() < bhyve::kStructPathSize), "only what fits is sent");
  if (!bytes)
    return;
  require(bytes->size() == 104, "bhyve reads 104 bytes");
  const std::string path(bytes->begin() + 4, bytes->end());
  require(path.compare(0, filename.size(), filename) == 0, "the path is the one given");
  require(path.find_first_not_of('\0', filename.size()) == std::string::npos, "and ends in NULs");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  FuzzedDataProvider in(data, size);
  const std::string filename = textOf(in, 300);
  checkListRequest(filename, in.ConsumeBool(), in.ConsumeBool());
  checkStructRequest(filename);
  checkList(in);
  return 0;
}
