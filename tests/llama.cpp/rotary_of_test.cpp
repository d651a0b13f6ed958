// The rotary table of a node of ggml's graph, for every kind of rotary embedding that models have.

#include "rotary_of.hpp"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

using squat_llama::rotary_of;

constexpr int head_dim = 64;

/// A node that is never computed: what a model's graph says of its keys.
class Rope {
 public:
  Rope(int channels, int mode, float base, float scale = 1, std::vector<float> factors = {},
       float extrapolation = 0, float magnitude = 1)
      : context_(ggml_init({.mem_size = 1 << 20, .mem_buffer = nullptr, .no_alloc = true}), ggml_free),
        backend_(ggml_backend_cpu_init(), ggml_backend_free) {
    ggml_tensor *const keys = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, head_dim, 2, 5);
    ggml_tensor *const positions = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I32, 5);
    ggml_tensor *divisors = nullptr;
    if (!factors.empty()) {
      divisors =
          ggml_new_tensor_1d(context_.get(), GGML_TYPE_F32, static_cast<std::int64_t>(factors.size()));
    }
    node_ = ggml_rope_ext(context_.get(), keys, positions, divisors, channels, mode, 4096, base, scale,
                          extrapolation, magnitude, 32, 1);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
    if (divisors != nullptr)
      ggml_backend_tensor_set(divisors, factors.data(), 0, factors.size() * sizeof(float));
  }

  ggml_tensor &node() { return *node_; }

 private:
  std::unique_ptr<ggml_context, decltype(&ggml_free)> context_;
  std::unique_ptr<ggml_backend, decltype(&ggml_backend_free)> backend_;
  std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)> buffer_{
      nullptr, ggml_backend_buffer_free};
  ggml_tensor *node_ = nullptr;
};

void expect_near(const std::vector<float> &table, const std::vector<double> &expected) {
  ASSERT_EQ(table.size(), expected.size());
  for (std::size_t pair = 0; pair < table.size(); ++pair)
    EXPECT_NEAR(static_cast<double>(table[pair]), expected[pair], 1e-5 * expected[pair]);
}

std::vector<double> frequencies(int channels, double base, double factor = 1) {
  std::vector<double> of_pairs;
  for (int pair = 0; pair < channels / 2; ++pair)
    of_pairs.push_back(factor * std::pow(base, -2.0 * pair / channels));
  return of_pairs;
}

TEST(RotaryOf, NormalTurnsNeighbours) {
  Rope rope(head_dim, GGML_ROPE_TYPE_NORMAL, 1e5f);
  const squat::RotaryTable table = rotary_of(rope.node());
  EXPECT_EQ(table.pairs, squat::RotaryPairs::interleaved);
  expect_near(table.inverse_frequencies, frequencies(head_dim, 1e5));
}

TEST(RotaryOf, NeoxTurnsHalves) {
  Rope rope(head_dim, GGML_ROPE_TYPE_NEOX, 1e6f);
  const squat::RotaryTable table = rotary_of(rope.node());
  EXPECT_EQ(table.pairs, squat::RotaryPairs::halves);
  expect_near(table.inverse_frequencies, frequencies(head_dim, 1e6));
}

TEST(RotaryOf, PartialRotationTurnsTheFirstChannels) {
  Rope rope(head_dim / 4, GGML_ROPE_TYPE_NEOX, 1e4f);
  expect_near(rotary_of(rope.node()).inverse_frequencies, frequencies(head_dim / 4, 1e4));
}

TEST(RotaryOf, LinearScalingDividesFrequencies) {
  Rope rope(head_dim, GGML_ROPE_TYPE_NEOX, 1e4f, 0.125f);
  expect_near(rotary_of(rope.node()).inverse_frequencies, frequencies(head_dim, 1e4, 0.125));
}

TEST(RotaryOf, FactorsDivideFrequenciesOneByOne) {
  std::vector<float> factors;
  std::vector<double> expected = frequencies(head_dim, 5e5);
  for (int pair = 0; pair < head_dim / 2; ++pair) {
    factors.push_back(pair < 16 ? 1.0f : 8.0f);
    expected[static_cast<std::size_t>(pair)] /= static_cast<double>(factors.back());
  }
  Rope rope(head_dim, GGML_ROPE_TYPE_NORMAL, 5e5f, 1, factors);
  expect_near(rotary_of(rope.node()).inverse_frequencies, expected);
}

// YaRN keeps what turns fast, divides what turns slowly, and scales all turned channels.
TEST(RotaryOf, YarnIsBetweenScaledAndUnscaled) {
  Rope rope(head_dim, GGML_ROPE_TYPE_NEOX, 1e4f, 0.25f, {}, 1, 1.1f);
  const std::vector<float> table = rotary_of(rope.node()).inverse_frequencies;
  const std::vector<double> unscaled = frequencies(head_dim, 1e4);
  EXPECT_NEAR(static_cast<double>(table.front()), unscaled.front(), 1e-5);
  EXPECT_NEAR(static_cast<double>(table.back()), 0.25 * unscaled.back(), 1e-8);
}

TEST(RotaryOf, RefusesSeveralPositionsAToken) {
  Rope rope(head_dim, GGML_ROPE_TYPE_NEOX, 1e4f);
  rope.node().op_params[2] = GGML_ROPE_TYPE_MROPE;
  EXPECT_THROW(rotary_of(rope.node()), std::invalid_argument);
}

TEST(RotaryOf, RefusesChannelsThatBeginBehindTheFirst) {
  Rope rope(head_dim / 2, GGML_ROPE_TYPE_NORMAL, 1e4f);
  ggml_rope_set_offset(&rope.node(), 32);
  EXPECT_THROW(rotary_of(rope.node()), std::invalid_argument);
}

}  // namespace
