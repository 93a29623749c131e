// The part of libnv's packed nvlist form that bhyve's checkpoint socket uses: flat lists of scalars.
//
// encode() returns the same bytes as libnv on a little-endian machine. decode() accepts only such bytes:
// encode() converts an accepted list to the same bytes again. decode() rejects nested lists, arrays,
// big-endian lists and list flags because bhyve's protocol does not use them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bhyve::nvlist {

enum class Type : std::uint8_t { Null = 1, Bool = 2, Number = 3, String = 4, Descriptor = 6, Binary = 7 };

struct Pair {
  std::string name;
  Type type = Type::Null;
  std::uint64_t scalar = 0; // bool, number, descriptor index
  std::string bytes;        // string (without its NUL), binary

  static Pair null(std::string name) { return {std::move(name), Type::Null, 0, {}}; }
  static Pair boolean(std::string name, bool value) {
    return {std::move(name), Type::Bool, value ? 1U : 0U, {}};
  }
  static Pair number(std::string name, std::uint64_t value) {
    return {std::move(name), Type::Number, value, {}};
  }
  static Pair string(std::string name, std::string value) {
    return {std::move(name), Type::String, 0, std::move(value)};
  }
  static Pair descriptor(std::string name, std::uint64_t index) {
    return {std::move(name), Type::Descriptor, index, {}};
  }
  static Pair binary(std::string name, std::string value) {
    return {std::move(name), Type::Binary, 0, std::move(value)};
  }
};

using List = std::vector<Pair>;

std::vector<std::uint8_t> encode(const List &pairs);

// Returns nullopt unless `bytes` is exactly one nvlist and its descriptor indices are below `descriptors`.
std::optional<List> decode(const std::uint8_t *bytes, std::size_t size, std::uint64_t descriptors);

} // namespace bhyve::nvlist
