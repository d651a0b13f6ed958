// Our caches. Their kernels come from headers, so that they have the instruction set of the program.

#include <algorithm>
#include <array>
#include <optional>

#include "contender.hpp"
#include "squat/squat.hpp"

namespace bench {
namespace {

template <int Bits>
class SquatCache : public Contender {
 public:
  SquatCache(const squat::Options &options, const Content &content)
      : cache_(options), sequence_(cache_.add_sequence()) {
    constexpr Index run = 1024;
    for (Index first = 0; first < content.tokens; first += run) {
      const Index count = std::min(run, content.tokens - first);
      for (int layer = 0; layer < content.layers; ++layer) {
        cache_.append(sequence_, layer, content.rows.q.view(first, count),
                      content.rows.k.view(first, count), content.rows.v.view(first, count));
      }
    }
  }

  Attention attention(squat::TensorView<const float> q) override {
    const auto out = std::make_shared<squat::test::Tensor<float>>(q.tokens, q.heads, q.head_dim);
    const auto run = [this, q, out](int layer) {
      const std::array batch{squat::SequenceTokens{sequence_, q.tokens}};
      cache_.attend(batch, layer, squat::AttentionTensors<float>{.q = q, .out = out->view()});
    };
    return {run, out->view()};
  }

  double bytes_per_token() const override {
    const squat::MemoryReport report = cache_.memory_report();
    const double row = 2.0 * kv_heads * head_dim * sizeof(squat::half);
    const auto tokens = static_cast<double>(report.packed_tokens + report.exact_tokens);
    return (static_cast<double>(report.pages_used) + static_cast<double>(report.exact_tokens) * row) /
           tokens;
  }

 private:
  squat::KVCache<squat::half, Bits> cache_;
  squat::SequenceId sequence_;
};

template <int Bits>
Coding coding_of(const char *name, std::optional<squat::Coding> coding,
                 const squat::Parallel &parallel) {
  const auto make = [=](const Content &content) -> std::unique_ptr<Contender> {
    const squat::Options options{.layers = content.layers,
                                 .query_heads = query_heads,
                                 .kv_heads = kv_heads,
                                 .head_dim = head_dim,
                                 .coding = coding,
                                 .rotary = {rotary_table()},
                                 .parallel = parallel};
    return std::make_unique<SquatCache<Bits>>(options, content);
  };
  return {"squat", name, Bits == 16, make};
}

#define BENCH_NAME_OF(macro) BENCH_TEXT(macro)
#define BENCH_TEXT(text) #text

}  // namespace

std::vector<Coding> squat_codings(const squat::Parallel &parallel) {
  return {coding_of<16>("exact k16v16", {}, parallel),
          coding_of<8>("default k8v8", {}, parallel),
          coding_of<4>("subspace k4v4", squat::Coding::subspace, parallel),
          coding_of<3>("subspace k3v3", squat::Coding::subspace, parallel),
          coding_of<2>("subspace k2v2", squat::Coding::subspace, parallel),
          coding_of<2>("orthogonal k2v2", squat::Coding::orthogonal, parallel)};
}

std::string squat_instruction_set() { return BENCH_NAME_OF(SQUAT_CPU_NAMESPACE); }

}  // namespace bench
