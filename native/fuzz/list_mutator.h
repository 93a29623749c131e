// Mutations that keep a message plausible. A random mutation nearly always breaks the size in the header.
// Then the decoder rejects the header and never reads the rest.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t *data, std::size_t size, std::size_t maxSize);

namespace bhyve::fuzz {

constexpr std::size_t kHeaderSize = 19;
constexpr std::size_t kDescriptorsOffset = 3;
constexpr std::size_t kSizeOffset = 11;
constexpr std::size_t kPairHeaderSize = 19;

inline void putU64(std::uint8_t *at, std::uint64_t value) {
  for (int i = 0; i < 8; i++)
    at[i] = static_cast<std::uint8_t>(value >> (8 * i));
}

inline std::uint64_t u64At(const std::uint8_t *at) {
  std::uint64_t value = 0;
  for (int i = 0; i < 8; i++)
    value |= static_cast<std::uint64_t>(at[i]) << (8 * i);
  return value;
}

// Returns the end of the pair that begins at `at`, or `size` if the pair does not end within the message.
inline std::size_t endOfPair(const std::uint8_t *message, std::size_t size, std::size_t at) {
  if (size - at < kPairHeaderSize)
    return size;
  const std::uint64_t name = message[at + 1] | static_cast<std::uint64_t>(message[at + 2]) << 8;
  const std::uint64_t data = u64At(message + at + 3);
  const std::uint64_t left = size - at - kPairHeaderSize;
  if (name > left || data > left - name)
    return size;
  return at + kPairHeaderSize + static_cast<std::size_t>(name + data);
}

// Appends a copy of one pair, to produce a duplicate name.
inline std::size_t repeatPair(std::uint8_t *message, std::size_t size, std::size_t maxSize,
                              std::minstd_rand &random) {
  if (size <= kHeaderSize)
    return size;
  std::size_t start = kHeaderSize;
  std::size_t end = endOfPair(message, size, start);
  for (auto skip = random() % 4; skip > 0 && end < size; skip--) {
    start = end;
    end = endOfPair(message, size, start);
  }
  const std::size_t length = end - start;
  if (length > maxSize - size)
    return size;
  std::memmove(message + size, message + start, length);
  return size + length;
}

// Returns the new size of the message. Fixes the size in the header in three cases of four. The others remain
// broken, because broken headers are inputs as well.
inline std::size_t mutateList(std::uint8_t *message, std::size_t size, std::size_t maxSize, unsigned seed) {
  std::minstd_rand random(seed);
  const bool isRepeated = random() % 8 == 0;
  const std::size_t mutated =
      isRepeated ? repeatPair(message, size, maxSize, random) : LLVMFuzzerMutate(message, size, maxSize);
  if (mutated >= kHeaderSize && random() % 4 != 0)
    putU64(message + kSizeOffset, mutated - kHeaderSize);
  return mutated;
}

} // namespace bhyve::fuzz
