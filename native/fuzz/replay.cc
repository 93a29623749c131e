// Runs a fuzz target on the given files without libFuzzer, for valgrind and for compilers other than clang.

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

// The targets' mutators link to this function of libFuzzer. A replay does not mutate.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t *, std::size_t size, std::size_t) {
  return size;
}

int main(int count, char **paths) {
  for (int i = 1; i < count; i++) {
    std::ifstream file(paths[i], std::ios::binary);
    if (!file) {
      static_cast<void>(std::fprintf(stderr, "cannot read %s\n", paths[i]));
      return 1;
    }
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t *>(bytes.data()), bytes.size());
  }
  static_cast<void>(std::printf("%d inputs\n", count - 1));
  return 0;
}
