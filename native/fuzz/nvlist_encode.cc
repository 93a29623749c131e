// Encodes lists with arbitrary valid content, and requests. Checks that decode() returns the same list.

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
  require(decoded && areEqual(*decoded, list), "an encoded list decodes to the same list");
}

// Checks the dialects whose requests are lists.
void checkListRequest(const std::string &filename, bool suspend, bool withDirectory) {
  const auto dialect = withDirectory ? bhyve::Dialect::Descriptor : bhyve::Dialect::Path;
  const auto operation = suspend ? bhyve::Operation::Suspend : bhyve::Operation::Checkpoint;
  const auto bytes = bhyve::encodeRequest(dialect, operation, filename);
  const auto request = bytes.value_or(std::vector<std::uint8_t>());
  const auto list =
      bhyve::nvlist::decode(request.data(), request.size(), withDirectory ? 1 : 0).value_or(List());
  require(list.size() == (withDirectory ? 4U : 3U), "a request has the pairs of its dialect");
  require(list[1].bytes == filename, "a request contains the file name");
  require(list[2].scalar == (suspend ? 1U : 0U), "a request contains the operation");
}

void checkStructRequest(const std::string &filename) {
  const auto bytes = bhyve::encodeRequest(bhyve::Dialect::Struct, bhyve::Operation::Suspend, filename);
  require(bytes.has_value() == (filename.size() < bhyve::kStructPathSize),
          "a path is encoded only if it fits");
  if (!bytes)
    return;
  require(bytes->size() == 104, "bhyve reads 104 bytes");
  const std::string path(bytes->begin() + 4, bytes->end());
  require(path.compare(0, filename.size(), filename) == 0, "a request contains the path");
  require(path.find_first_not_of('\0', filename.size()) == std::string::npos, "the path is padded with NULs");
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
