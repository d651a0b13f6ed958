#pragma once

// llama.cpp's sequences as those of a cache.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "llama-io.h"
#include "llama.h"
#include "squat/model.hpp"

namespace squat_llama {

/// Positions [first, last) of llama.cpp's calls, where a negative number is no limit.
struct Positions {
  Positions(llama_pos p0, llama_pos p1);
  llama_pos first, last;
};

/// llama.cpp numbers its sequences as it likes, and says of every token where it stands. In the cache
/// tokens are rows without holes: positions are kept beside them, and the cache is told where the next
/// token stands whenever that is not behind the one before it.
class MemorySequences {
 public:
  MemorySequences();

  /// Where they are kept from now on; it outlives this. Until then all of them are empty.
  void keep_in(squat::ModelCache &cache) { cache_ = &cache; }

  /// Where the tokens of a sequence stand, rising.
  std::span<const llama_pos> positions(llama_seq_id id) const;

  /// The next tokens of a sequence stand at `positions`, one behind the other. Returns what it is in the
  /// cache, which has yet to append them.
  squat::SequenceId append(llama_seq_id id, std::span<const llama_pos> positions);

  /// Removes all tokens of all sequences.
  void clear();
  /// Removes tokens of a sequence, of all of them where `id` is negative. Returns whether they are gone:
  /// false where a window has let go what would be needed.
  bool remove(llama_seq_id id, const Positions &range);
  /// Removes all sequences but one.
  void keep(llama_seq_id id);

  /// @{
  /// Calls of llama.cpp's that can neither fail nor be left undone: they end the program where they
  /// would. One sequence becomes the first tokens of another; all tokens behind a position move.
  void copy(llama_seq_id from, llama_seq_id to, const Positions &range);
  void move(llama_seq_id id, const Positions &range, llama_pos by);
  /// @}

  /// @{
  /// A snapshot and the positions of a sequence, of all of them where `id` is negative. read() throws
  /// for a state that is none, or of sequences of more than `most_tokens` tokens.
  void write(llama_io_write_i &io, llama_seq_id id) const;
  void read(llama_io_read_i &io, llama_seq_id id, std::uint32_t most_tokens);
  /// @}

 private:
  struct Sequence {
    squat::SequenceId id{};              // none: it is empty
    std::vector<llama_pos> positions{};  // of its tokens, rising
    llama_pos next = 0;                  // where the cache takes its next token to stand

    /// Tokens before the first at `position` or behind it.
    squat::Index tokens_before(llama_pos position) const;
    squat::Index length() const { return static_cast<squat::Index>(positions.size()); }
  };

  Sequence &at(llama_seq_id id) { return sequences_.at(static_cast<std::size_t>(id)); }
  void remove(Sequence &sequence);
  bool remove(Sequence &sequence, const Positions &range);

  squat::ModelCache *cache_ = nullptr;
  std::vector<Sequence> sequences_;
};

}  // namespace squat_llama
