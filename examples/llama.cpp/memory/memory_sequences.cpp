#include "memory_sequences.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "llama-cparams.h"

namespace squat_llama {
namespace {

constexpr std::uint32_t state_magic = 0x31747173;  // "sqt1"

/// A snapshot within a state of llama.cpp's.
struct StateSink {
  llama_io_write_i &io;
  void write(std::span<const std::byte> bytes) { io.write(bytes.data(), bytes.size()); }
};
struct StateSource {
  llama_io_read_i &io;
  void read(std::span<std::byte> bytes) { io.read(bytes.data(), bytes.size()); }
};

template <class Value>
void write_value(llama_io_write_i &io, const Value &value) {
  io.write(&value, sizeof value);
}
template <class Value>
Value read_value(llama_io_read_i &io) {
  Value value;
  io.read(&value, sizeof value);
  return value;
}

[[noreturn]] void abort_call(const char *call, const char *why) {
  GGML_ABORT("%s: squat's memory %s", call, why);
}
template <class Run>
auto or_abort(const char *call, Run &&run) {
  try {
    return run();
  } catch (const std::exception &error) {
    GGML_ABORT("%s: %s", call, error.what());
  }
}

}  // namespace

Positions::Positions(llama_pos p0, llama_pos p1)
    : first(std::max(p0, 0)), last(p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1) {}

squat::Index MemorySequences::Sequence::tokens_before(llama_pos position) const {
  return std::lower_bound(positions.begin(), positions.end(), position) - positions.begin();
}

MemorySequences::MemorySequences() : sequences_(LLAMA_MAX_SEQ) {}

std::span<const llama_pos> MemorySequences::positions(llama_seq_id id) const {
  return sequences_.at(static_cast<std::size_t>(id)).positions;
}

squat::SequenceId MemorySequences::append(llama_seq_id id, std::span<const llama_pos> positions) {
  Sequence &sequence = at(id);
  if (sequence.id.value == 0) sequence.id = cache_->add_sequence();
  if (sequence.next != positions.front()) {
    const squat::Index length = sequence.length();
    cache_->shift(sequence.id, length, length, positions.front() - sequence.next);
    sequence.next = positions.front();
  }
  sequence.positions.insert(sequence.positions.end(), positions.begin(), positions.end());
  sequence.next = sequence.positions.back() + 1;
  return sequence.id;
}

// ---- removing

void MemorySequences::clear() {
  for (Sequence &sequence : sequences_) remove(sequence);
}

bool MemorySequences::remove(llama_seq_id id, const Positions &range) {
  if (id >= 0) return remove(at(id), range);
  bool removed = true;
  for (Sequence &sequence : sequences_) removed = remove(sequence, range) && removed;
  return removed;
}

void MemorySequences::keep(llama_seq_id id) {
  for (Sequence &sequence : sequences_) {
    if (&sequence != &at(id)) remove(sequence);
  }
}

void MemorySequences::remove(Sequence &sequence) {
  if (sequence.id.value != 0) cache_->remove_sequence(sequence.id);
  sequence = {};
}

bool MemorySequences::remove(Sequence &sequence, const Positions &range) {
  const squat::Index first = sequence.tokens_before(range.first),
                     last = sequence.tokens_before(range.last), length = sequence.length();
  if (first >= last) return true;
  if (last - first == length) {
    remove(sequence);
    return true;
  }
  try {
    if (last == length) {
      cache_->truncate(sequence.id, first);
      sequence.next -= static_cast<llama_pos>(length - first);
    } else {
      cache_->shift(sequence.id, first, last, 0);
    }
  } catch (const squat::Error &) {
    return false;
  }
  sequence.positions.erase(sequence.positions.begin() + first, sequence.positions.begin() + last);
  return true;
}

// ---- copying and moving

void MemorySequences::copy(llama_seq_id from, llama_seq_id to, const Positions &range) {
  Sequence &source = at(from), &copy = at(to);
  if (from == to || source.id.value == 0) return;
  const squat::Index tokens = source.tokens_before(range.last);
  if (source.tokens_before(range.first) > 0)
    abort_call("seq_cp", "copies the first tokens of a sequence, not those behind them");
  const squat::SequenceId id = or_abort("seq_cp", [&] { return cache_->fork(source.id, tokens); });
  remove(copy);
  copy = {id, {source.positions.begin(), source.positions.begin() + tokens}, source.next};
  // As truncate() leaves it.
  copy.next -= static_cast<llama_pos>(source.length() - tokens);
}

void MemorySequences::move(llama_seq_id id, const Positions &range, llama_pos by) {
  Sequence &sequence = at(id);
  const squat::Index first = sequence.tokens_before(range.first), length = sequence.length();
  if (by == 0 || first == length || range.first >= range.last) return;
  if (sequence.tokens_before(range.last) != length)
    abort_call("seq_add", "moves all tokens behind a position, not a part of them");
  or_abort("seq_add", [&] { cache_->shift(sequence.id, first, first, by); });
  std::for_each(sequence.positions.begin() + first, sequence.positions.end(),
                [by](llama_pos &position) { position += by; });
  sequence.next += by;
}

// ---- state

void MemorySequences::write(llama_io_write_i &io, llama_seq_id wanted) const {
  std::vector<llama_seq_id> written;
  for (llama_seq_id id = 0; id < LLAMA_MAX_SEQ; ++id) {
    if ((wanted < 0 || id == wanted) && sequences_[static_cast<std::size_t>(id)].id.value != 0)
      written.push_back(id);
  }
  write_value(io, state_magic);
  write_value(io, static_cast<std::uint32_t>(written.size()));
  for (const llama_seq_id id : written) {
    const Sequence &sequence = sequences_[static_cast<std::size_t>(id)];
    write_value(io, id);
    write_value(io, sequence.next);
    write_value(io, static_cast<std::uint64_t>(sequence.positions.size()));
    io.write(sequence.positions.data(), sequence.positions.size() * sizeof(llama_pos));
    cache_->save(sequence.id, StateSink{io});
  }
}

void MemorySequences::read(llama_io_read_i &io, llama_seq_id id, std::uint32_t most_tokens) {
  if (read_value<std::uint32_t>(io) != state_magic)
    throw std::runtime_error("the state is not one of squat's memory");
  const auto count = read_value<std::uint32_t>(io);
  if (count > (id < 0 ? sequences_.size() : 1))
    throw std::runtime_error("the state has " + std::to_string(count) + " sequences");
  if (id < 0) {
    clear();
  } else {
    remove(at(id));
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto saved = read_value<llama_seq_id>(io);
    Sequence sequence{.next = read_value<llama_pos>(io)};
    const auto tokens = read_value<std::uint64_t>(io);
    if (tokens > most_tokens)
      throw std::runtime_error("the state has a sequence of " + std::to_string(tokens) +
                               " tokens, must be at most " + std::to_string(most_tokens));
    sequence.positions.resize(tokens);
    io.read(sequence.positions.data(), tokens * sizeof(llama_pos));
    const auto end = sequence.positions.end();
    if (std::adjacent_find(sequence.positions.begin(), end, std::greater_equal<>()) != end)
      throw std::runtime_error("the state has positions that do not rise");
    Sequence &loaded = at(id < 0 ? saved : id);
    sequence.id = cache_->load(StateSource{io});
    if (cache_->length(sequence.id) != sequence.length()) {
      remove(sequence);
      throw std::runtime_error("the state has another number of positions than of tokens");
    }
    remove(loaded);
    loaded = std::move(sequence);
  }
}

}  // namespace squat_llama
