// Writes what a model predicts at the end of a text's start, for compare_with_transformers.py:
// logits MODEL TEXT-FILE TOKENS LAST > FILE. Tokens of the text's start, and the logits at the last of
// them; as binary numbers: counts of tokens, of positions and of the vocabulary, tokens (int32), logits
// (float).

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cache_spec.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "squat/model.hpp"
#include "tokenizer.hpp"

namespace {

using namespace engine;

template <class Scalar>
void write(const Scalar *from, std::size_t count) {
  if (std::fwrite(from, sizeof(Scalar), count, stdout) != count)
    throw std::runtime_error("cannot write to standard output");
}

void run(const std::string &path, const std::string &text, std::size_t most, std::size_t last) {
  const Gguf file = Gguf::open(path);
  const Tokenizer tokenizer(file);
  std::vector<int> tokens = encode_file(text, tokenizer, most);
  if (tokenizer.begin_of_text() >= 0) tokens.insert(tokens.begin(), tokenizer.begin_of_text());
  Model model(file);
  squat::ModelOptions options = parse_cache_spec("exact").options_for(model.config());
  options.exact_rows = squat::ElementType::float32;
  squat::ModelCache cache(options, squat::make_cpu_group);
  const squat::SequenceId sequence = cache.add_sequence();
  const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
    const auto view = [&](RowMatrix &rows) {
      return squat::TensorView<float>(rows.data(), rows.rows(), rows.cols() / model.config().head_dim,
                                      model.config().head_dim);
    };
    cache.attend(sequence, layer, view(q), view(k), view(v), view(out));
  };
  std::vector<Position> rows;
  for (int token : tokens) rows.push_back({token, static_cast<int>(rows.size())});
  std::vector<int> wanted;
  for (std::size_t at = tokens.size() - std::min(last, tokens.size()); at < tokens.size(); ++at)
    wanted.push_back(static_cast<int>(at));
  const RowMatrix &logits = model.forward(rows, attention, wanted);
  const std::int32_t counts[] = {static_cast<std::int32_t>(tokens.size()),
                                 static_cast<std::int32_t>(wanted.size()), model.config().vocabulary};
  write(counts, std::size(counts));
  write(tokens.data(), tokens.size());
  write(logits.data(), static_cast<std::size_t>(logits.size()));
}

}  // namespace

int main(int argc, char **argv) {
  try {
    if (argc != 5) throw std::invalid_argument("usage: logits MODEL TEXT-FILE TOKENS LAST > FILE");
    run(argv[1], argv[2], std::stoul(argv[3]), std::stoul(argv[4]));
  } catch (const std::exception &error) {
    std::fprintf(stderr, "logits: %s\n", error.what());
    return 1;
  }
  return 0;
}
