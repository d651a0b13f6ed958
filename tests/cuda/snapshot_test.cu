// Snapshots between the device and the CPU: the same bytes, whichever of them saved.

#include <cstddef>
#include <vector>

#include "caches.cuh"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"

namespace squat::test {
namespace {

Options options_of(Coding coding, int head_dim, int page_tokens, TailCoding tail,
                   ValueCoding values = ValueCoding::symmetric) {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = head_dim, .coding = coding};
  options.values = values;
  options.tail = tail;
  options.sinks = 3;
  options.residual = 10;
  options.page_tokens = page_tokens;
  options.rotary = {rotary_table(1e3, 46)};
  options.statistics_tokens = 60;
  return options;
}

template <class Cache, class In>
void fill(Cache &cache, SequenceId sequence, In &in, Index first, Index count) {
  for (int layer : {0, 1}) {
    cache.attend(sequence, layer, in.q.view(first, count), in.k.view(first, count),
                 in.v.view(first, count), in.out.view(first, count));
  }
}

/// From the CPU to the device and back, and the other way round.
template <int HeadDim, int Group, int KeyBits, int ValueBits, class T = half>
void check(const Options &options) {
  using Device = DeviceCache<HeadDim, Group, KeyBits, ValueBits, T>;
  using Host = KVCache<T, KeyBits, ValueBits>;
  for (const Index tokens : {Index{0}, Index{2}, Index{50}, Index{4 * Group + 7}}) {
    SCOPED_TRACE(testing::Message() << tokens << " tokens");
    Host host(options), host_again(options);
    Device device(options), device_again(options);
    DeviceInputs in(options, tokens, 3, nearest<T>);
    const SequenceId on_host = host.add_sequence(), on_device = device.add_sequence();
    if (tokens > 0) {
      fill(host, on_host, in.host, 0, tokens);
      fill(device, on_device, in, 0, tokens);
    }
    const Bytes of_host = saved(host, on_host), of_device = saved(device, on_device);
    const SequenceId there = device_again.load(of_host), here = host_again.load(of_device);
    EXPECT_TRUE(saved(device_again, there) == of_host);
    EXPECT_TRUE(saved(host_again, here) == of_device);
    if (tokens == 0) continue;
    for (int layer : {0, 1}) {
      EXPECT_LT(relative_distance(device_contents(device_again, there, layer).k,
                                  contents(host, on_host, layer).k),
                device_tolerance);
      EXPECT_LT(relative_distance(contents(host_again, here, layer).v,
                                  device_contents(device, on_device, layer).v),
                device_tolerance);
    }
    // What was loaded goes on as the original does, step by step.
    DeviceInputs more(options, Group + 20, 9, nearest<T>), same(options, Group + 20, 9, nearest<T>);
    Device third(options);
    const SequenceId loaded = third.load(of_device);
    for (Index token = 0; token < Group + 20; ++token) {
      fill(device, on_device, more, token, 1);
      fill(third, loaded, same, token, 1);
    }
    third.check();
    EXPECT_EQ(third.length(loaded), device.length(on_device));
    EXPECT_LT(relative_distance(same.out.read(), more.out.read()), device_tolerance);
    EXPECT_TRUE(saved(third, loaded) == saved(device, on_device));
  }
}

class CudaSnapshot : public OnDevice {};

TEST_F(CudaSnapshot, OfEveryCodingAndTailIsTheCpus) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
      for (const ValueCoding values : {ValueCoding::plain, ValueCoding::symmetric}) {
        SCOPED_TRACE(testing::Message()
                     << static_cast<int>(coding) << static_cast<int>(tail) << static_cast<int>(values));
        check<64, 32, 2, 2>(options_of(coding, 64, 32, tail, values));
      }
    }
  }
}

TEST_F(CudaSnapshot, OfEveryWidthIsTheCpus) {
  check<64, 32, 3, 4>(options_of(Coding::subspace, 64, 32, TailCoding::exact));
  check<64, 32, 16, 16>(options_of(Coding::plain, 64, 32, TailCoding::exact));
  check<128, 128, 2, 3>(options_of(Coding::subspace, 128, 128, TailCoding::int8));
  check<128, 128, 4, 4>(options_of(Coding::subspace, 128, 128, TailCoding::exact));
  check<128, 128, 8, 16>(options_of(Coding::plain, 128, 128, TailCoding::exact));
  check<96, 32, 3, 3, bfloat16>(options_of(Coding::subspace, 96, 32, TailCoding::int8));
}

TEST_F(CudaSnapshot, AfterTruncateAndShiftIsTheCpus) {
  const Options options = options_of(Coding::subspace, 64, 32, TailCoding::int8);
  DeviceCache<64, 32, 2, 2> device(options), again(options);
  KVCache<half, 2> host(options);
  DeviceInputs in(options, 220, 4);
  const SequenceId sequence = device.add_sequence();
  fill(device, sequence, in, 0, 220);
  device.truncate(sequence, 190);
  device.shift(sequence, 40, 60, -20);
  const Bytes bytes = saved(device, sequence);
  EXPECT_TRUE(saved(again, again.load(bytes)) == bytes);
  EXPECT_TRUE(saved(host, host.load(bytes)) == bytes);
}

TEST_F(CudaSnapshot, ThatIsAlteredIsRefused) {
  const Options options = options_of(Coding::subspace, 64, 32, TailCoding::int8);
  DeviceCache<64, 32, 2, 2> device(options), again(options);
  DeviceInputs in(options, 150, 4);
  const SequenceId sequence = device.add_sequence();
  fill(device, sequence, in, 0, 150);
  const Bytes bytes = saved(device, sequence);
  const std::size_t before = again.memory_report().total();
  for (std::size_t at = 0; at < bytes.size(); at += 997) {
    Bytes altered = bytes;
    altered[at] ^= std::byte{4};
    EXPECT_THROW(again.load(altered), Error) << at;
    altered.resize(at);
    EXPECT_THROW(again.load(altered), Error) << at;
    EXPECT_EQ(again.memory_report().pages, 0u);
  }
  EXPECT_GE(again.memory_report().total(), before);
  const SequenceId loaded = again.load(bytes);
  EXPECT_EQ(device_contents(again, loaded), device_contents(device, sequence));
}

}  // namespace
}  // namespace squat::test
