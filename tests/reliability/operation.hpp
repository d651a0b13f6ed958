#pragma once

// What a random run does to a cache, as data: a list of operations stays valid whatever is dropped from
// it or made smaller, and prints as C++.

#include <ostream>
#include <string>
#include <vector>

namespace squat::test {

enum class Kind {
  add,
  remove,
  append,  ///< some sequences, in one call a layer
  step,    ///< one token for some sequences, several times
  read,    ///< attention without tokens
  truncate,
  shift,
  fork,
  reorder,
  save,  ///< into a slot
  load,  ///< from a slot
  save_codings,
  load_codings,
  reset_learning,
  bad_call  ///< which is refused
};
inline constexpr const char *kind_names[] = {
    "add",     "remove", "append", "step",         "read",         "truncate",       "shift",   "fork",
    "reorder", "save",   "load",   "save_codings", "load_codings", "reset_learning", "bad_call"};

/// How tokens are handed over.
enum class Form { attend, append, append_with_queries };
inline constexpr const char *form_names[] = {"attend", "append", "append_with_queries"};

/// Numbers of sequences, slots and tokens count round: of 3 sequences, 4 is the second.
struct Operation {
  static constexpr int all_layers = -1;

  Kind kind = Kind::add;
  int sequence = 0;        ///< the first of those that take part
  int sequences = 1;       ///< how many do, from that one on
  int tokens = 0;          ///< of the first sequence; those to keep, or to drop
  int more = 0;            ///< how many the next sequence has more
  int first = 0;           ///< of the tokens that a shift drops; a slot
  int by = 0;              ///< positions
  int layer = all_layers;  ///< or the one layer that is fed
  Form form = Form::attend;
  bool padded = false;  ///< rows of the batch's tensors are apart
  bool learn = true;    ///< from the first sequence; from the others always
  unsigned seed = 0;    ///< of rows, parents and damage
  int fails_at = 0;     ///< in the first call, see CheckedCache's Place::fail()
};

/// As an initializer that leaves defaults out.
inline std::ostream &operator<<(std::ostream &out, const Operation &operation) {
  const Operation usual;
  out << "{.kind = Kind::" << kind_names[static_cast<int>(operation.kind)];
  const auto number = [&](const char *name, auto Operation::*field) {
    if (operation.*field != usual.*field) out << ", ." << name << " = " << operation.*field;
  };
  number("sequence", &Operation::sequence);
  number("sequences", &Operation::sequences);
  number("tokens", &Operation::tokens);
  number("more", &Operation::more);
  number("first", &Operation::first);
  number("by", &Operation::by);
  number("layer", &Operation::layer);
  if (operation.form != usual.form)
    out << ", .form = Form::" << form_names[static_cast<int>(operation.form)];
  out << (operation.padded ? ", .padded = true" : "") << (operation.learn ? "" : ", .learn = false");
  number("seed", &Operation::seed);
  number("fails_at", &Operation::fails_at);
  return out << "}";
}

}  // namespace squat::test
