// A model's cache is a KVCache for each group of its layers, and all of them keep the same sequences.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "layered_model.hpp"
#include "reference/expect_error.hpp"
#include "reference/saved.hpp"
#include "squat/model.hpp"

namespace squat::test::model_cache_test {
namespace {

class ModelCaches : public testing::Test {
 protected:
  ModelCaches() : cache(layered_model(), make_cpu_group), in(layered_model()) {}

  ModelCache cache;
  ModelInputs in;
};

/// Expects the calls of a group's layers to give what a KVCache of these layers gives, bit for bit.
template <int KeyBits, int ValueBits>
void expect_calls_of(ModelCache &cache, ModelInputs &in, const LayerGroup &group) {
  Options options = group.options;
  options.layers = static_cast<int>(group.layers.size());
  KVCache<half, KeyBits, ValueBits> alone(options);
  const SequenceId one = cache.add_sequence(), other = alone.add_sequence();
  Inputs<> &inputs = in.of(group.layers.front());
  Index first = 0;
  for (const Index count : {90, 3, 1, 1, 60}) {
    for (int i = 0; i < options.layers; ++i) {
      const auto q = inputs.q.view(first, count), k = inputs.k.view(first, count),
                 v = inputs.v.view(first, count);
      Tensor<float> expected(count, inputs.q.heads, inputs.q.head_dim), out = expected;
      alone.attend(other, i, q, k, v, expected.view());
      cache.attend(one, group.layers[static_cast<std::size_t>(i)], q, k, v, out.view());
      EXPECT_EQ(out.elements, expected.elements);
    }
    first += count;
  }
  const auto &report = cache.group_of(group.layers.front()).memory_report();
  EXPECT_EQ(report.total_bits_per_element, alone.memory_report().total_bits_per_element);
  cache.remove_sequence(one);
}

TEST_F(ModelCaches, AreACacheForEachGroup) {
  expect_calls_of<16, 16>(cache, in, exact_layers());
  expect_calls_of<4, 4>(cache, in, local_layers());
  expect_calls_of<2, 3>(cache, in, global_layers());
}

TEST_F(ModelCaches, TakeBatches) {
  const std::array sequences{cache.add_sequence(), cache.add_sequence()};
  const SequenceId alone = cache.add_sequence();
  Inputs<> &inputs = in.of(2);
  const std::array batch{SequenceTokens{sequences[1], 70}, SequenceTokens{sequences[0], 50}};
  cache.attend(batch, 2, inputs.q.view(0, 120), inputs.k.view(0, 120), inputs.v.view(0, 120),
               inputs.out.view(0, 120));
  EXPECT_EQ(cache.length(sequences[1], 2), 70);
  EXPECT_EQ(cache.length(sequences[0], 2), 50);
  EXPECT_EQ(cache.length(sequences[0]), 0);  // other layers have none yet
  cache.append(alone, 2, inputs.k.view(70, 50), inputs.v.view(70, 50));
  Tensor<float> out(1, inputs.q.heads, inputs.q.head_dim), expected = out;
  cache.attend(sequences[0], 2, inputs.q.view(0, 1), out.view());
  cache.attend(alone, 2, inputs.q.view(0, 1), expected.view());
  EXPECT_EQ(out.elements, expected.elements);
}

TEST_F(ModelCaches, GiveKeysToLayersThatShareThem) {
  const SequenceId sequence = cache.add_sequence();
  feed(cache, sequence, in, 0, 100);
  Inputs<> &inputs = in.of(5);
  Tensor<float> out(2, inputs.q.heads, inputs.q.head_dim), expected = out;
  cache.attend(sequence, 5, inputs.q.view(98, 2), out.view());
  cache.attend(sequence, 2, inputs.q.view(98, 2), expected.view());
  EXPECT_EQ(out.elements, expected.elements);
  EXPECT_EQ(cache.length(sequence, 5), 100);
  EXPECT_EQ(refusal_of([&] {
              cache.attend(sequence, 5, inputs.q.view(0, 1), inputs.k.view(0, 1), inputs.v.view(0, 1),
                           out.view(0, 1));
            }),
            "squat: layer is 5, must be one with keys of its own where keys are appended: its keys are "
            "those of "
            "layer 2");
  EXPECT_EQ(refusal_of([&] { cache.length(sequence, 6); }),
            "squat: layer is 6, must be one that has keys");
  EXPECT_EQ(refusal_of([&] { cache.length(sequence, 7); }), "squat: layer is 7, must be 0 to 6");
}

TEST_F(ModelCaches, Draft) {
  const SequenceId sequence = cache.add_sequence();
  feed(cache, sequence, in, 0, 100);
  const std::vector<float> before = seen(cache, sequence, in);
  const std::array<Index, 3> parents = {-1, 0, 1};
  const std::array batch{SequenceTokens{sequence, 3}};
  for (const int layer : {0, 4}) {  // exact ones
    auto &[q, k, v, out] = in.of(layer);
    Tensor<float> drafted(3, q.heads, q.head_dim);
    cache.draft(
        batch, layer,
        AttentionTensors<float>{
            .q = q.view(100, 3), .k = k.view(100, 3), .v = v.view(100, 3), .out = drafted.view()},
        parents);
    const SequenceId appended = cache.fork(sequence);
    cache.attend(appended, layer, q.view(100, 3), k.view(100, 3), v.view(100, 3), out.view(0, 3));
    for (std::size_t i = 0; i < drafted.elements.size(); ++i)
      EXPECT_NEAR(drafted.elements[i], out.elements[i], 1e-5);
  }
  EXPECT_EQ(seen(cache, sequence, in), before);
}

TEST(ModelLayers, AreEachNamedOnce) {
  const auto error = [](const std::function<void(ModelOptions &)> &change) {
    ModelOptions options = layered_model();
    change(options);
    return refusal_of([&] { ModelCache(options, make_cpu_group); });
  };
  EXPECT_EQ(error([](ModelOptions &) {}), "none");
  EXPECT_EQ(error([](ModelOptions &o) { o.layers = 8; }),
            "squat: groups is without layer 7, must be such that each layer is in a group, shared, or "
            "without keys");
  EXPECT_EQ(error([](ModelOptions &o) { o.layers = 0; }), "squat: layers is 0, must be at least 1");
  EXPECT_EQ(error([](ModelOptions &o) {
              o.groups[0].layers = {0, 3};
            }),
            "squat: groups.layers is 3, must be named once");
  EXPECT_EQ(error([](ModelOptions &o) {
              o.groups[0].layers = {0, 7};
            }),
            "squat: groups.layers is 7, must be 0 to 6");
  EXPECT_EQ(error([](ModelOptions &o) { o.groups[0].layers = {}; }),
            "squat: groups.layers is empty, must be at least one layer");
  EXPECT_EQ(error([](ModelOptions &o) {
              o.layers_without_keys = {6, 6};
            }),
            "squat: layers_without_keys is 6, must be named once");
  EXPECT_EQ(error([](ModelOptions &o) { o.shared_layers[0].keys_of = 6; }),
            "squat: shared_layers.keys_of is 6, must be a layer of a group");
  EXPECT_EQ(error([](ModelOptions &o) { o.shared_layers[0].keys_of = 5; }),
            "squat: shared_layers.keys_of is 5, must be a layer of a group");
  EXPECT_EQ(error([](ModelOptions &o) { o.groups[1].options.layers = 3; }),
            "squat: groups.options.layers is 3, must be 0, or how many layers the group has, 2");
  EXPECT_EQ(error([](ModelOptions &o) { o.groups[1].key_bits = 5; }),
            "squat: key_bits is 5, must be 2, 3, 4, 8 or 16");
  EXPECT_EQ(error([](ModelOptions &o) {
              o.groups.clear();
              o.shared_layers.clear();
              o.layers_without_keys = {0, 1, 2, 3, 4, 5, 6};
            }),
            "squat: groups is empty, must be at least one group");
}

TEST_F(ModelCaches, ForkAllGroups) {
  const SequenceId parent = cache.add_sequence();
  feed(cache, parent, in, 0, 120);
  const std::vector<float> before = seen(cache, parent, in);
  const SequenceId child = cache.fork(parent);
  EXPECT_EQ(seen(cache, child, in), before);
  EXPECT_GT(cache.memory_report().shared_pages, 0u);
  feed(cache, child, in, 120, 20);
  EXPECT_EQ(seen(cache, parent, in), before);
  EXPECT_EQ(cache.length(child), 140);
}

TEST_F(ModelCaches, DoAsAWholeOrNotAtAll) {
  const SequenceId sequence = cache.add_sequence();
  feed(cache, sequence, in, 0, 150);
  const std::vector<float> before = seen(cache, sequence, in);
  const std::size_t used = cache.memory_report().pages_used;
  // The local layers have given their first pages back, the others have not.
  EXPECT_NE(refusal_of([&] { cache.truncate(sequence, 60); }), "none");
  EXPECT_NE(refusal_of([&] { cache.fork(sequence, 60); }), "none");
  EXPECT_NE(refusal_of([&] { cache.shift(sequence, 20, 60, -40); }), "none");
  EXPECT_NE(refusal_of([&] { cache.truncate(sequence, 151); }), "none");
  EXPECT_NE(refusal_of([&] { cache.shift(sequence, 20, 151, -40); }), "none");
  EXPECT_EQ(seen(cache, sequence, in), before);
  EXPECT_EQ(cache.memory_report().pages_used, used);
  cache.truncate(sequence, 140);
  EXPECT_EQ(cache.length(sequence), 140);
  for (const int layer : layers_with_keys) EXPECT_EQ(cache.length(sequence, layer), 140);
}

TEST_F(ModelCaches, ShiftAllGroups) {
  ModelOptions options = layered_model();
  options.groups[0].options.rotary = {rotary_table(1e4, 32)};
  options.groups[1].options.rotary = {rotary_table(1e3, 48)};
  ModelCache shifted(options, make_cpu_group);
  const SequenceId sequence = shifted.add_sequence();
  feed(shifted, sequence, in, 0, 150);
  shifted.shift(sequence, 141, 145, -4);
  for (const int layer : layers_with_keys) EXPECT_EQ(shifted.length(sequence, layer), 146);
}

TEST_F(ModelCaches, ReorderAllGroups) {
  const std::array beams{cache.add_sequence(), cache.add_sequence(), cache.add_sequence()};
  feed(cache, beams[0], in, 0, 120);
  feed(cache, beams[1], in, 10, 90);
  const std::vector<float> first = seen(cache, beams[0], in), second = seen(cache, beams[1], in);
  cache.reorder(beams, std::array{beams[1], beams[0], beams[0]});
  EXPECT_EQ(seen(cache, beams[0], in), second);
  EXPECT_EQ(seen(cache, beams[1], in), first);
  EXPECT_EQ(seen(cache, beams[2], in), first);
  EXPECT_NE(refusal_of([&] { cache.reorder(std::array{beams[0], beams[0]}, beams); }), "none");
  EXPECT_EQ(seen(cache, beams[0], in), second);
}

TEST_F(ModelCaches, SaveAndLoad) {
  const SequenceId sequence = cache.add_sequence();
  feed(cache, sequence, in, 0, 150);
  Bytes bytes;
  std::uint64_t told = 0;
  cache.save(sequence, bytes, {.progress = [&](std::uint64_t so_far) { told = so_far; }});
  EXPECT_EQ(told, bytes.size());

  ModelCache other(layered_model(), make_cpu_group);
  told = 0;
  const SequenceId loaded = other.load(bytes, [&](std::uint64_t so_far) { told = so_far; });
  EXPECT_EQ(told, bytes.size());
  EXPECT_EQ(seen(other, loaded, in), seen(cache, sequence, in));
  EXPECT_EQ(saved(other, loaded), bytes);

  // Whichever group's part is bad, none is taken.
  const std::size_t used = other.memory_report().pages_used;
  for (const std::size_t size :
       {0ul, 15ul, 16ul, bytes.size() / 4, bytes.size() / 2, bytes.size() - 1}) {
    const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(refusal_of([&] { other.load(cut); }), "squat: snapshot is truncated") << size;
  }
  for (std::size_t at = 0; at < bytes.size(); at += bytes.size() / 50) {
    Bytes altered = bytes;
    altered[at] ^= std::byte{1};
    EXPECT_NE(refusal_of([&] { other.load(altered); }), "none") << at;
  }
  EXPECT_EQ(other.memory_report().pages_used, used);

  ModelOptions fewer = layered_model();
  fewer.groups.pop_back();
  fewer.shared_layers.clear();
  fewer.layers_without_keys = {2, 5, 6};
  ModelCache without(fewer, make_cpu_group);
  EXPECT_EQ(refusal_of([&] { without.load(bytes); }),
            "squat: snapshot groups is 3, must be as many as the cache has, 2");
  bytes[8] = std::byte{2};
  EXPECT_EQ(refusal_of([&] { other.load(bytes); }), "squat: snapshot version is 2, must be 1");
  bytes[0] = std::byte{0};
  EXPECT_EQ(refusal_of([&] { other.load(bytes); }), "squat: snapshot is none of a model");
}

TEST_F(ModelCaches, HandTheirCodingsOn) {
  const SequenceId sequence = cache.add_sequence();
  feed(cache, sequence, in, 0, 150);
  Bytes codings, without = saved(cache, sequence, false);
  cache.save_codings(codings);
  ModelCache other(layered_model(), make_cpu_group);
  EXPECT_NE(refusal_of([&] { other.load(without); }), "none");
  other.load_codings(codings);
  EXPECT_EQ(seen(other, other.load(without), in), seen(cache, sequence, in));
}

TEST(ModelPriors, AreOfAGroup) {
  ModelOptions options = layered_model();
  for (LayerGroup &group : options.groups) group.options.keep_statistics = true;
  ModelInputs in(options);
  ModelCache teacher(options, make_cpu_group);
  feed(teacher, teacher.add_sequence(), in, 0, 200);

  options = layered_model();
  const auto taught = [&](std::size_t from, std::size_t to) {
    ModelOptions with_prior = options;
    with_prior.groups[to].options.prior = std::make_shared<Prior>(teacher.statistics(from));
    ModelCache cache(with_prior, make_cpu_group);
    feed(cache, cache.add_sequence(), in, 0, to == 1 ? 45 : 55);
    return cache.group(to).memory_report().packed_tokens;
  };
  // A page is packed before the group has seen the tokens that it would learn from itself.
  EXPECT_GT(taught(1, 1), 0);
  EXPECT_GT(taught(2, 2), 0);
  EXPECT_EQ(refusal_of([&] { taught(1, 2); }).substr(0, 13), "squat: prior.");
  ModelCache untaught(options, make_cpu_group);
  feed(untaught, untaught.add_sequence(), in, 0, 45);
  EXPECT_EQ(untaught.group(1).memory_report().packed_tokens, 0);
  EXPECT_EQ(untaught.group(2).memory_report().packed_tokens, 0);
}

TEST(ModelBudget, IsOneForAllGroups) {
  ModelOptions options = layered_model();
  ModelInputs in(options);
  ModelCache measured(options, make_cpu_group);
  feed(measured, measured.add_sequence(), in, 0, 150);
  const std::size_t needed = measured.memory_report().pages_used;
  EXPECT_GT(measured.group(0).memory_report().pages_used, 0u);
  EXPECT_GT(measured.group(2).memory_report().pages_used, 0u);

  options.max_page_bytes = 2 * needed - 1;
  ModelCache cache(options, make_cpu_group);
  const std::array sequences{cache.add_sequence(), cache.add_sequence()};
  feed(cache, sequences[0], in, 0, 150);
  EXPECT_EQ(cache.free_page_bytes(), needed - 1);
  EXPECT_EQ(cache.memory_report().pages_used, needed);
  const std::vector<float> before = seen(cache, sequences[0], in);
  EXPECT_NE(refusal_of([&] { feed(cache, sequences[1], in, 0, 150); }).find("squat: page_budget is "),
            std::string::npos);
  EXPECT_LE(cache.memory_report().pages_used, options.max_page_bytes);
  EXPECT_EQ(seen(cache, sequences[0], in), before);

  EXPECT_GE(cache.freed_if_removed(sequences[0]).bytes, needed);
  cache.remove_sequence(sequences[1]);
  cache.remove_sequence(sequences[0]);
  EXPECT_EQ(cache.free_page_bytes(), options.max_page_bytes);
  const SequenceId again = cache.add_sequence();
  const std::array batch{SequenceTokens{again, 150}};
  EXPECT_GE(cache.page_bytes_due(batch), needed);  // what leaves the windows counts before it leaves
  EXPECT_LE(cache.page_bytes_due(batch), cache.free_page_bytes());
  feed(cache, again, in, 0, 150);
}

TEST(ModelBudget, IsGivenBackWithItsCaches) {
  const auto budget = std::make_shared<PageBudget>(1 << 20);
  Options options = global_layers().options;
  options.layers = 1;
  options.page_budget = budget;
  ModelInputs in(layered_model());
  Inputs<> &inputs = in.of(2);
  {
    KVCache<half, 2> one(options), other(options);
    for (KVCache<half, 2> *cache : {&one, &other})
      cache->append(cache->add_sequence(), 0, inputs.k.view(), inputs.v.view());
    EXPECT_EQ(budget->used_bytes(), one.memory_report().pages_used + other.memory_report().pages_used);
    EXPECT_GT(budget->used_bytes(), 0u);
    EXPECT_EQ(one.free_pages(), budget->free_bytes() / one.page_bytes(0));
  }
  EXPECT_EQ(budget->used_bytes(), 0u);
}

TEST(ModelGroups, MayBeOfListedWidths) {
  ModelOptions options{.layers = 1, .groups = {global_layers()}};
  options.groups[0].layers = {0};
  const MakeGroup listed = make_group<Cpu, half, Widths<2, 3>, Widths<4, 4>>;
  ModelCache cache(options, listed);
  EXPECT_EQ(cache.group(0).key_bits(), 2);
  EXPECT_EQ(cache.group(0).value_bits(), 3);
  options.groups[0].value_bits = 4;
  EXPECT_EQ(refusal_of([&] { ModelCache(options, listed); }),
            "squat: key_bits and value_bits is 2 and 4, must be widths, over exact rows, that this "
            "program has "
            "kernels for");
}

TEST(ModelCacheSteps, AreNotReplayedOnTheCpu) {
  ModelCache cache(layered_model(), make_cpu_group);
  const std::vector batch{SequenceTokens{cache.add_sequence(), 1}};
  EXPECT_EQ(cache.steps_to_replay(batch), 0);
  EXPECT_THROW(cache.advance(batch, 1), Error);
}

}  // namespace
}  // namespace squat::test::model_cache_test
