#pragma once

// What is drawn for a run: options and operations; and how both print as C++.

#include <algorithm>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "operation.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test {

struct Case {
  Options options;     ///< but for the prior
  bool prior = false;  ///< there is one
  std::vector<Operation> operations;
};

class Dice {
 public:
  explicit Dice(unsigned seed) : random_(seed) {}

  int below(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }
  int between(int least, int most) { return least + below(most - least + 1); }
  bool once_in(int count) { return below(count) == 0; }
  unsigned seed() { return static_cast<unsigned>(random_() % 1000000); }
  template <class Choice>
  Choice of(std::initializer_list<Choice> choices) {
    return choices.begin()[below(static_cast<int>(choices.size()))];
  }

 private:
  std::mt19937 random_;
};

inline Options draw_options(Dice &dice, int key_bits, int value_bits) {
  const bool trellis = dice.once_in(4);
  Options options;
  options.layers = dice.between(1, 3);
  options.kv_heads = dice.between(1, 2);
  options.query_heads = options.kv_heads * dice.between(1, 3);
  options.head_dim = trellis ? dice.of({32, 64}) : dice.of({16, 28, 48});
  options.page_tokens = trellis ? 32 : dice.of({16, 32, 48});
  options.coding = dice.of({Coding::plain, Coding::orthogonal, Coding::subspace, Coding::subspace});
  if (trellis) options.codes = Codes::trellis;
  if (std::max(key_bits, value_bits) < 16) options.tail = dice.of({TailCoding::exact, TailCoding::int8});
  if (dice.once_in(3)) options.values = dice.of({ValueCoding::plain, ValueCoding::symmetric});
  options.orthogonal.block = dice.of({1, 2, 8});
  options.orthogonal.order = dice.once_in(2);
  options.sinks = dice.between(0, 4);
  options.residual = dice.between(0, 20);
  options.statistics_tokens = dice.between(0, 80);
  options.learning =
      dice.of({LearningMode::first_tokens, LearningMode::per_sequence, LearningMode::frozen});
  options.keep_statistics = options.learning != LearningMode::frozen && dice.once_in(5);
  if (options.coding == Coding::subspace) {
    options.allocation = options.learning == LearningMode::per_sequence
                             ? dice.of({Allocation::head, Allocation::layer})
                             : dice.of({Allocation::head, Allocation::layer, Allocation::model});
  }
  const int tables = dice.of({0, 1, 1, options.layers});
  for (int table = 0; table < tables; ++table) {
    options.rotary.push_back(rotary_table(dice.of({1e2, 1e4}), dice.of({options.head_dim, 8})));
    options.rotary.back().pairs = dice.of({RotaryPairs::interleaved, RotaryPairs::halves});
  }
  if (tables > 0 && dice.once_in(2)) options.tile_tokens = dice.of({0, 32, 96});
  if (dice.once_in(3)) options.max_pages = static_cast<std::size_t>(dice.between(2, 20));
  return options;
}

inline Operation draw_operation(Dice &dice) {
  constexpr std::pair<Kind, int> weights[] = {
      {Kind::add, 8},          {Kind::remove, 6},         {Kind::append, 30}, {Kind::step, 12},
      {Kind::read, 7},         {Kind::truncate, 6},       {Kind::shift, 6},   {Kind::fork, 8},
      {Kind::reorder, 5},      {Kind::save, 5},           {Kind::load, 6},    {Kind::save_codings, 2},
      {Kind::load_codings, 2}, {Kind::reset_learning, 2}, {Kind::bad_call, 4}};
  int sum = 0;
  for (const auto &[kind, weight] : weights) sum += weight;
  int left = dice.below(sum);
  Operation operation;
  for (const auto &[kind, weight] : weights) {
    operation.kind = kind;
    if ((left -= weight) < 0) break;
  }
  operation.sequence = dice.below(8);
  operation.sequences = dice.of({1, 1, 2, 3, 7});
  operation.tokens = operation.kind == Kind::step
                         ? dice.between(1, 12)
                         : dice.of({dice.below(4), dice.below(40), dice.below(90)});
  if (operation.kind == Kind::fork || operation.kind == Kind::truncate)
    operation.tokens = dice.below(1000);
  operation.more = dice.below(20);
  operation.first = dice.below(100);
  operation.by = dice.of({0, -operation.tokens, dice.between(-100, 100)});
  if (dice.once_in(6)) operation.layer = dice.below(3);
  operation.form = dice.of({Form::attend, Form::attend, Form::append, Form::append_with_queries});
  operation.padded = dice.once_in(4);
  operation.learn = !dice.once_in(5);
  operation.seed = dice.seed();
  if (dice.once_in(5))
    operation.fails_at = dice.of({dice.between(1, 6), dice.between(1, 60), -dice.between(1, 5)});
  return operation;
}

inline void write_options(std::ostream &out, const Case &of) {
  const Options &options = of.options;
  const auto number = [&](const char *name, auto value) {
    out << "  options." << name << " = " << value << ";\n";
  };
  const auto named = [&](const char *name, const char *type, const auto &value) {
    if (value) out << "  options." << name << " = " << type << "{" << static_cast<int>(*value) << "};\n";
  };
  number("layers", options.layers);
  number("query_heads", options.query_heads);
  number("kv_heads", options.kv_heads);
  number("head_dim", options.head_dim);
  named("coding", "Coding", options.coding);
  named("values", "ValueCoding", options.values);
  named("tail", "TailCoding", options.tail);
  named("codes", "Codes", options.codes);
  named("allocation", "Allocation", options.allocation);
  number("orthogonal.block", options.orthogonal.block);
  number("orthogonal.order", options.orthogonal.order);
  number("sinks", options.sinks);
  number("residual", options.residual);
  number("page_tokens", options.page_tokens);
  for (const RotaryTable &table : options.rotary) {
    out << "  options.rotary.push_back({{";
    for (const float frequency : table.inverse_frequencies) out << frequency << ", ";
    out << "}, RotaryPairs{" << static_cast<int>(table.pairs) << "}});\n";
  }
  if (options.tile_tokens) number("tile_tokens", *options.tile_tokens);
  number("statistics_tokens", options.statistics_tokens);
  out << "  options.learning = LearningMode{" << static_cast<int>(options.learning) << "};\n";
  number("keep_statistics", options.keep_statistics);
  if (options.max_pages < 1000) number("max_pages", options.max_pages);
}

/// A test that makes the same run. types: the template arguments of holds().
inline std::string as_test(const Case &of, const std::string &types) {
  std::ostringstream out;
  out << "TEST(RandomOperations, Again) {\n  Options options;\n";
  write_options(out, of);
  out << "  const Case again{options, " << (of.prior ? "true" : "false") << ", {\n";
  for (const Operation &operation : of.operations) out << "    " << operation << ",\n";
  out << "  }};\n  EXPECT_EQ((violation<" << types << ">(again)), \"\");\n}\n";
  return out.str();
}

}  // namespace squat::test
