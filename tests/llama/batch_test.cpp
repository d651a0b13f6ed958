// Sequences that share a batch do not see each other: each gets the logits it gets alone.

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache_spec.hpp"
#include "gguf.hpp"
#include "llama/small_model.hpp"
#include "model.hpp"
#include "tokenizer.hpp"

namespace llama::test {
namespace {

/// Decodes all texts together, `length` tokens of each, a prompt of `prompt` and then one by one. Logits
/// of each text's last token.
RowMatrix decode(const std::vector<std::string> &texts, const std::string &coding, int prompt,
                 int length) {
  const Gguf file(small_model());
  const Tokenizer tokenizer(file);
  Model model(file);
  const CacheSpec spec = parse_cache_spec(coding);
  std::vector<std::unique_ptr<Cache>> caches;
  std::vector<std::vector<int>> tokens;
  for (const std::string &text : texts) {
    caches.push_back(make_cache(spec, spec.options_for(model.config())));
    tokens.push_back(tokenizer.encode(text));
  }
  RowMatrix logits;
  for (int first = 0, count = prompt; first < length; first += count, count = 1) {
    std::vector<Position> rows;
    std::vector<int> last;
    for (const std::vector<int> &text : tokens) {
      for (int i = first; i < first + count; ++i) rows.push_back({text[static_cast<std::size_t>(i)], i});
      last.push_back(static_cast<int>(rows.size()) - 1);
    }
    const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
      for (std::size_t i = 0; i < caches.size(); ++i) {
        caches[i]->attend(layer, q, k, v, out, static_cast<squat::Index>(i) * count, count);
      }
    };
    logits = model.forward(rows, attention, last);
  }
  return logits;
}

TEST(Batch, SequencesGetTheLogitsTheyGetAlone) {
  const std::string digits = "0123456789";
  std::vector<std::string> texts;
  for (const std::string lead : {"one", "two ", "three"}) {
    texts.push_back(lead);
    while (texts.back().size() < 200) texts.back() += lead + digits;
  }
  for (const std::string coding : {"exact", "plain:k2v2:g16:w16"}) {
    const RowMatrix together = decode(texts, coding, 40, 90);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const RowMatrix alone = decode({texts[i]}, coding, 40, 90);
      const auto row = together.row(static_cast<Eigen::Index>(i));
      EXPECT_LT((row - alone.row(0)).norm() / alone.norm(), 1e-3) << coding << ' ' << i;
    }
  }
}

}  // namespace
}  // namespace llama::test
