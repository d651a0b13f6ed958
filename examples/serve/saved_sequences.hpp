#pragma once

// Sequences that wait on disk.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "engine.hpp"

namespace engine::serve {

/// A file a sequence, in a folder of their own, which goes with this.
class SavedSequences {
 public:
  SavedSequences(ModelCache &cache, const std::filesystem::path &parent) : cache_(cache) {
    std::string name = (parent / "sequences-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr)
      throw std::system_error(errno, std::generic_category(),
                              "cannot make a folder in " + parent.string());
    folder_ = name;
  }
  ~SavedSequences() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  SavedSequences(const SavedSequences &) = delete;
  SavedSequences &operator=(const SavedSequences &) = delete;

  /// Moves a sequence from the cache to disk.
  void save(std::uint64_t number, squat::SequenceId sequence) {
    std::ofstream out(path(number), std::ios::binary);
    cache_.save(sequence, out);
    if (!out.flush()) throw std::runtime_error("cannot write " + path(number).string());
    cache_.remove_sequence(sequence);
  }

  /// Moves it back.
  squat::SequenceId load(std::uint64_t number) {
    std::ifstream in(path(number), std::ios::binary);
    const squat::SequenceId sequence = cache_.load(in);
    drop(number);
    return sequence;
  }

  void drop(std::uint64_t number) { std::filesystem::remove(path(number)); }

 private:
  std::filesystem::path path(std::uint64_t number) const { return folder_ / std::to_string(number); }

  ModelCache &cache_;
  std::filesystem::path folder_;
};

}  // namespace engine::serve
