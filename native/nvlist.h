// libnv's packed nvlist form, as far as bhyve's checkpoint socket uses it: flat lists of scalars.
//
// Encoding gives the bytes libnv gives on a little-endian machine. Decoding accepts only such bytes: whatever
// decode() accepts, encode() turns into the same bytes again. Nested lists, arrays, big-endian lists and
// list flags are refused, since bhyve's protocol has none of them.
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

// nullopt unless `bytes` is exactly one nvlist whose descriptor indices lie below `descriptors`.
std::optional<List> decode(const std::uint8_t *bytes, std::size_t size, std::uint64_t descriptors);

} // namespace bhyve::nvlist
