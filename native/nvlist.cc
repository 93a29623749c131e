#include "nvlist.h"

#include <algorithm>
#include <set>

namespace bhyve::nvlist {
namespace {

constexpr std::uint8_t kMagic = 0x6c;
constexpr std::uint8_t kVersion = 0;
constexpr std::uint8_t kNoFlags = 0;
constexpr std::size_t kHeaderSize = 19;
constexpr std::size_t kNameMax = 2048; // with the NUL
constexpr std::uint64_t kScalarItems = 0;

class Writer {
public:
  void u8(std::uint8_t value) { bytes_.push_back(value); }
  void u16(std::uint16_t value) { littleEndian(value, 2); }
  void u64(std::uint64_t value) { littleEndian(value, 8); }
  void text(std::string_view value) { bytes_.insert(bytes_.end(), value.begin(), value.end()); }
  void append(const std::vector<std::uint8_t> &other) {
    bytes_.insert(bytes_.end(), other.begin(), other.end());
  }
  [[nodiscard]] const std::vector<std::uint8_t> &bytes() const { return bytes_; }
  std::vector<std::uint8_t> take() { return std::move(bytes_); }

private:
  void littleEndian(std::uint64_t value, int width) {
    for (int i = 0; i < width; i++)
      u8(static_cast<std::uint8_t>(value >> (8 * i)));
  }

  std::vector<std::uint8_t> bytes_;
};

// Checks each read. After a failed read, all later reads fail as well.
class Reader {
public:
  Reader(const std::uint8_t *bytes, std::size_t size) : next_(bytes), left_(size) {}

  std::uint8_t u8() { return static_cast<std::uint8_t>(littleEndian(1)); }
  std::uint16_t u16() { return static_cast<std::uint16_t>(littleEndian(2)); }
  std::uint64_t u64() { return littleEndian(8); }
  std::string_view text(std::uint64_t size) {
    if (size > left_) {
      fail();
      return {};
    }
    const std::string_view value(reinterpret_cast<const char *>(next_), static_cast<std::size_t>(size));
    advance(static_cast<std::size_t>(size));
    return value;
  }
  [[nodiscard]] std::size_t left() const { return left_; }
  [[nodiscard]] bool ok() const { return ok_; }

private:
  std::uint64_t littleEndian(std::size_t width) {
    if (width > left_) {
      fail();
      return 0;
    }
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; i++)
      value |= static_cast<std::uint64_t>(next_[i]) << (8 * i);
    advance(width);
    return value;
  }
  void advance(std::size_t count) {
    next_ += count;
    left_ -= count;
  }
  void fail() {
    ok_ = false;
    left_ = 0;
  }

  const std::uint8_t *next_;
  std::size_t left_;
  bool ok_ = true;
};

void writeData(Writer &out, const Pair &pair) {
  switch (pair.type) {
  case Type::Null:
    return;
  case Type::Bool:
    out.u8(static_cast<std::uint8_t>(pair.scalar));
    return;
  case Type::Number:
  case Type::Descriptor:
    out.u64(pair.scalar);
    return;
  case Type::String:
    out.text(pair.bytes);
    out.u8(0);
    return;
  case Type::Binary:
    out.text(pair.bytes);
    return;
  }
}

void writePair(Writer &out, const Pair &pair) {
  Writer data;
  writeData(data, pair);
  out.u8(static_cast<std::uint8_t>(pair.type));
  out.u16(static_cast<std::uint16_t>(pair.name.size() + 1));
  out.u64(data.bytes().size());
  out.u64(kScalarItems);
  out.text(pair.name);
  out.u8(0);
  out.append(data.bytes());
}

bool endsAtItsNul(std::string_view text) {
  return !text.empty() && text.find('\0') == text.size() - 1;
}

// `data` is the data of one pair. Returns false if it does not match the type of the pair.
bool readData(std::string_view data, std::uint64_t descriptors, Pair &pair) {
  Reader in(reinterpret_cast<const std::uint8_t *>(data.data()), data.size());
  switch (pair.type) {
  case Type::Null:
    return data.empty();
  case Type::Bool:
    pair.scalar = in.u8();
    return data.size() == 1 && pair.scalar <= 1;
  case Type::Number:
    pair.scalar = in.u64();
    return data.size() == 8;
  case Type::Descriptor:
    pair.scalar = in.u64();
    return data.size() == 8 && pair.scalar < descriptors;
  case Type::String:
    if (!endsAtItsNul(data))
      return false;
    pair.bytes = std::string(data.substr(0, data.size() - 1));
    return true;
  case Type::Binary:
    pair.bytes = std::string(data);
    return !data.empty();
  }
  return false;
}

bool isScalarType(std::uint8_t type) {
  return (type >= 1 && type <= 4) || type == 6 || type == 7;
}

std::optional<Pair> readPair(Reader &in, std::uint64_t descriptors) {
  const std::uint8_t type = in.u8();
  const std::uint16_t nameSize = in.u16();
  const std::uint64_t dataSize = in.u64();
  const std::uint64_t items = in.u64();
  if (!in.ok() || !isScalarType(type) || items != kScalarItems || nameSize > kNameMax)
    return std::nullopt;
  const std::string_view name = in.text(nameSize);
  const std::string_view data = in.text(dataSize);
  if (!in.ok() || !endsAtItsNul(name))
    return std::nullopt;
  Pair pair;
  pair.name = std::string(name.substr(0, name.size() - 1));
  pair.type = static_cast<Type>(type);
  if (!readData(data, descriptors, pair))
    return std::nullopt;
  return pair;
}

std::uint64_t countDescriptors(const List &pairs) {
  return static_cast<std::uint64_t>(std::count_if(
      pairs.begin(), pairs.end(), [](const Pair &pair) { return pair.type == Type::Descriptor; }));
}

} // namespace

std::vector<std::uint8_t> encode(const List &pairs) {
  Writer body;
  for (const Pair &pair : pairs)
    writePair(body, pair);
  Writer out;
  out.u8(kMagic);
  out.u8(kVersion);
  out.u8(kNoFlags);
  out.u64(countDescriptors(pairs));
  out.u64(body.bytes().size());
  out.append(body.bytes());
  return out.take();
}

std::optional<List> decode(const std::uint8_t *bytes, std::size_t size, std::uint64_t descriptors) {
  Reader in(bytes, size);
  const bool known = in.u8() == kMagic && in.u8() == kVersion && in.u8() == kNoFlags;
  const std::uint64_t announced = in.u64();
  const std::uint64_t bodySize = in.u64();
  if (!known || !in.ok() || bodySize != size - kHeaderSize || announced != descriptors)
    return std::nullopt;
  List pairs;
  std::set<std::string> names;
  while (in.left() > 0) {
    std::optional<Pair> pair = readPair(in, descriptors);
    if (!pair || !names.insert(pair->name).second)
      return std::nullopt;
    pairs.push_back(std::move(*pair));
  }
  if (countDescriptors(pairs) != announced)
    return std::nullopt;
  return pairs;
}

} // namespace bhyve::nvlist
