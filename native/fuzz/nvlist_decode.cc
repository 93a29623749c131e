// Bytes nobody vouches for, as a list: what decode() accepts is exactly what encode() writes, and nothing
// near it is accepted too. The first byte of an input is the number of descriptors that came along.

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
  require(pair.name.size() <= kNameMax && !hasNul(pair.name), "a name is what libnv takes for one");
  const bool hasBytes = pair.type == Type::String || pair.type == Type::Binary;
  require(hasBytes || pair.bytes.empty(), "a scalar has no bytes");
  if (pair.type == Type::Bool)
    require(pair.scalar <= 1, "a bool is 0 or 1");
  if (pair.type == Type::Descriptor)
    require(pair.scalar < descriptors, "a descriptor is one of those that came");
  if (pair.type == Type::String)
    require(!hasNul(pair.bytes), "a string ends at its NUL");
}

void checkList(const List &list, std::uint64_t descriptors) {
  std::set<std::string> names;
  std::uint64_t count = 0;
  for (const Pair &pair : list) {
    checkPair(pair, descriptors);
    require(names.insert(pair.name).second, "every name once");
    count += pair.type == Type::Descriptor ? 1 : 0;
  }
  require(count == descriptors, "every descriptor has a name");
}

// A byte more, a byte less, another number of descriptors: all refused.
void checkNeighbours(std::vector<std::uint8_t> bytes, std::uint64_t descriptors) {
  using bhyve::nvlist::decode;
  require(!decode(bytes.data(), bytes.size(), descriptors + 1), "a descriptor too many is refused");
  require(!decode(bytes.data(), bytes.size() - 1, descriptors), "a byte too few is refused");
  bytes.push_back(0);
  require(!decode(bytes.data(), bytes.size(), descriptors), "a byte too many is refused");
}

// The number of descriptors in front and the one in the header agree three times out of four.
void mendDescriptors(std::uint8_t *data, std::size_t size, unsigned seed) {
  if (size > bhyve::fuzz::kHeaderSize && seed % 4 != 0)
    bhyve::fuzz::putU64(data + 1 + bhyve::fuzz::kDescriptorsOffset, data[0]);
}

} // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t *data, std::size_t size, std::size_t maxSize,
                                               unsigned seed) {
  if (size == 0 || maxSize == 1 || seed % 16 == 0)
    return LLVMFuzzerMutate(data, size, maxSize);
  const std::size_t mutated = 1 + bhyve::fuzz::mutateList(data + 1, size - 1, maxSize - 1, seed);
  mendDescriptors(data, mutated, seed / 16);
  return mutated;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  if (size == 0)
    return 0;
  const std::uint64_t descriptors = data[0];
  // A copy of its own: a read past its end is seen.
  const std::vector<std::uint8_t> bytes(data + 1, data + size);
  const auto list = bhyve::nvlist::decode(bytes.data(), bytes.size(), descriptors);
  if (!list)
    return 0;
  checkList(*list, descriptors);
  require(bhyve::nvlist::encode(*list) == bytes, "what is accepted re-encodes to itself");
  checkNeighbours(bytes, descriptors);
  return 0;
}
