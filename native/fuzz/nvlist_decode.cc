// Decodes arbitrary bytes. Checks that encode() writes exactly the bytes that decode() accepts, and that
// decode() rejects similar bytes. The first byte of an input is the number of descriptors sent with the list.

#include <set>

#include "../nvlist.h"
#include "list_mutator.h"
#include "require.h"

namespace {

using bhyve::fuzz::require;
using bhyve::nvlist::List;
using bhyve::nvlist::Pair;
using bhyve::nvlist::Type;

constexpr std::size_t kNameMax = 2047; // without the NUL

bool hasNul(const std::string &text) {
  return text.find('\0') != std::string::npos;
}

void checkPair(const Pair &pair, std::uint64_t descriptors) {
  require(pair.name.size() <= kNameMax && !hasNul(pair.name), "a name is valid for libnv");
  const bool hasBytes = pair.type == Type::String || pair.type == Type::Binary;
  require(hasBytes || pair.bytes.empty(), "a scalar has no bytes");
  if (pair.type == Type::Bool)
    require(pair.scalar <= 1, "a bool is 0 or 1");
  if (pair.type == Type::Descriptor)
    require(pair.scalar < descriptors, "a descriptor index is below the number of descriptors");
  if (pair.type == Type::String)
    require(!hasNul(pair.bytes), "a string contains no NUL");
}

void checkList(const List &list, std::uint64_t descriptors) {
  std::set<std::string> names;
  std::uint64_t count = 0;
  for (const Pair &pair : list) {
    checkPair(pair, descriptors);
    require(names.insert(pair.name).second, "each name is unique");
    count += pair.type == Type::Descriptor ? 1 : 0;
  }
  require(count == descriptors, "each descriptor has a pair");
}

// decode() must reject one byte more, one byte less, and another number of descriptors.
void checkNeighbours(std::vector<std::uint8_t> bytes, std::uint64_t descriptors) {
  using bhyve::nvlist::decode;
  require(!decode(bytes.data(), bytes.size(), descriptors + 1), "one descriptor too many is rejected");
  require(!decode(bytes.data(), bytes.size() - 1, descriptors), "one byte too few is rejected");
  bytes.push_back(0);
  require(!decode(bytes.data(), bytes.size(), descriptors), "one byte too many is rejected");
}

// Makes the number of descriptors in the header equal to the first byte of the input in three cases of four.
void fixDescriptors(std::uint8_t *data, std::size_t size, unsigned seed) {
  if (size > bhyve::fuzz::kHeaderSize && seed % 4 != 0)
    bhyve::fuzz::putU64(data + 1 + bhyve::fuzz::kDescriptorsOffset, data[0]);
}

} // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t *data, std::size_t size, std::size_t maxSize,
                                               unsigned seed) {
  if (size == 0 || maxSize == 1 || seed % 16 == 0)
    return LLVMFuzzerMutate(data, size, maxSize);
  const std::size_t mutated = 1 + bhyve::fuzz::mutateList(data + 1, size - 1, maxSize - 1, seed);
  fixDescriptors(data, mutated, seed / 16);
  return mutated;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  if (size == 0)
    return 0;
  const std::uint64_t descriptors = data[0];
  // Copy the input, so that the sanitizer detects a read past its end.
  const std::vector<std::uint8_t> bytes(data + 1, data + size);
  const auto list = bhyve::nvlist::decode(bytes.data(), bytes.size(), descriptors);
  if (!list)
    return 0;
  checkList(*list, descriptors);
  require(bhyve::nvlist::encode(*list) == bytes, "an accepted list re-encodes to the same bytes");
  checkNeighbours(bytes, descriptors);
  return 0;
}
