// libFuzzer's entry: bytes are loaded as a snapshot, as they are and with checksums that fit, and as a
// prior; what is accepted holds what it says. An empty corpus gets a few to begin with. Build with
// -DSQUAT_BUILD_FUZZERS=ON and clang++; see tests/CMakeLists.txt.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "reference/reference_attention.hpp"
#include "reliability/what_it_says.hpp"

namespace {

using Cache = squat::KVCache<squat::half, 2>;

squat::Options options() {
  squat::Options options{.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16};
  options.sinks = 1;
  options.residual = 2;
  options.page_tokens = 16;
  options.statistics_tokens = 20;
  options.rotary = {{.inverse_frequencies = {1, .1f, .01f}}};
  options.tile_tokens = 32;
  return options;
}

void load(const std::vector<std::byte> &bytes) {
  Cache cache(options());
  try {
    const squat::SequenceId sequence = cache.load(bytes);
    if (squat::test::what_it_says(squat::test::saved(cache, sequence)) !=
        squat::test::what_it_says(bytes))
      std::abort();
    squat::test::contents(cache, sequence);
    squat::test::Inputs<> in(cache.options(), 30, 1);
    cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    squat::test::saved(cache, sequence);
  } catch (const squat::Error &) {
  }
}

void write_seeds(const std::filesystem::path &folder) {
  squat::Options with_statistics = options();
  with_statistics.keep_statistics = true;
  for (const squat::Index tokens : {1, 10, 40, 90}) {
    Cache cache(with_statistics);
    const squat::SequenceId sequence = cache.add_sequence();
    squat::test::Inputs<> in(cache.options(), tokens, 1);
    squat::test::fill(cache, sequence, in, 0, tokens);
    if (tokens > 40) cache.shift(sequence, 4, 9, -5);
    std::ofstream file(folder / ("sequence_" + std::to_string(tokens)), std::ios::binary);
    cache.save(sequence, file);
    std::ofstream prior(folder / ("prior_" + std::to_string(tokens)), std::ios::binary);
    cache.statistics().save(prior);
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *count, char ***arguments) {
  for (int i = 1; i < *count; ++i) {
    const std::filesystem::path folder = (*arguments)[i];
    if (std::filesystem::is_directory(folder) && std::filesystem::is_empty(folder)) write_seeds(folder);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  std::vector<std::byte> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  load(bytes);
  squat::test::repair(bytes);
  load(bytes);
  try {
    std::istringstream file(std::string(reinterpret_cast<const char *>(data), size));
    squat::Prior::load(file);
  } catch (const squat::Error &) {
  }
  return 0;
}
