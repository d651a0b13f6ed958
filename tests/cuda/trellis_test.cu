// Trellis codes on the device (CudaTrellis, CudaSharingTrellis): what it holds and attends to is what
// the CPU does with the same prior.

#include "both_backends.cuh"
#include "caches.cuh"
#include "reference/expect_error.hpp"

namespace squat::test {
namespace {

template <int HeadDim, int KeyBits, int ValueBits>
using TrellisWidths = CachePair<CudaTrellis<HeadDim>, HeadDim, KeyBits, ValueBits, Codes::trellis>;

template <class Widths>
class CudaTrellisCodes : public OnDevice {};

using AllTrellisWidths =
    testing::Types<TrellisWidths<64, 2, 2>, TrellisWidths<128, 2, 3>, SharedTrellis<128, 2, 3>>;
TYPED_TEST_SUITE(CudaTrellisCodes, AllTrellisWidths);

template <class Widths>
void expect_what_the_cpu_makes(Coding coding) {
  Options options = learnt_options<Widths>(Allocation::head);
  options.coding = coding;
  options.values = ValueCoding::symmetric;
  Both<Widths> both(options);
  both.feed(uneven(options, 600, 1));
  both.check();
  both.device.truncate(both.on_device, 301);
  both.host.truncate(both.on_host, 301);
  both.check();
}

TYPED_TEST(CudaTrellisCodes, AreWhatTheCpuMakes) {
  expect_what_the_cpu_makes<TypeParam>(Coding::subspace);
}

/// Orthogonal keys, plain ones of 3 bits and values of 4 are scalar, in the order of trellis codes.
using CudaTrellisBesideScalar = OnDevice;

TEST_F(CudaTrellisBesideScalar, AreWhatTheCpuMakes) {
  expect_what_the_cpu_makes<TrellisWidths<64, 2, 2>>(Coding::orthogonal);
  expect_what_the_cpu_makes<TrellisWidths<128, 2, 3>>(Coding::orthogonal);
  expect_what_the_cpu_makes<TrellisWidths<64, 3, 4>>(Coding::orthogonal);
  expect_what_the_cpu_makes<TrellisWidths<64, 3, 4>>(Coding::subspace);
}

/// They err less than scalar ones, as codes of their own error would.
TYPED_TEST(CudaTrellisCodes, ErrLessThanScalarOnes) {
  const Options options = learnt_options<TypeParam>(Allocation::head);
  Options scalar = options;
  scalar.codes = Codes::scalar;
  DeviceInputs in = uneven(options, 700, 1);
  typename TypeParam::Cache cache(options);
  typename TypeParam::CpuCache other(scalar);
  const SequenceId on_device = cache.add_sequence(), on_host = other.add_sequence();
  cache.append(on_device, 0, in.q.view(), in.k.view(), in.v.view());
  other.append(on_host, 0, in.host.q.view(), in.host.k.view(), in.host.v.view());
  const double own = relative_distance(device_contents(cache, on_device).v, in.host.v),
               of_scalar = relative_distance(contents(other, on_host).v, in.host.v);
  EXPECT_LT(own, .9 * of_scalar);
}

/// Pages that the basis does not suit have scalar keys.
TYPED_TEST(CudaTrellisCodes, ArePlainInPagesThatTheBasisDoesNotSuit) {
  const Options options = learnt_options<TypeParam>(Allocation::head);
  Both<TypeParam> both(options);
  both.feed(uneven(options, 400, 1));
  both.feed_turned_over(400, 2);
  both.check();
}

/// A window and slopes ask for tokens by their places; a tail of bytes is packed too.
TYPED_TEST(CudaTrellisCodes, KeepTheirTokensInOrder) {
  Options options = learnt_options<TypeParam>(Allocation::head);
  options.tail = TailCoding::int8;
  options.attention_window = 150;
  for (int head = 0; head < options.query_heads; ++head)
    options.alibi_slopes.push_back(.02f * static_cast<float>(head));
  typename TypeParam::Cache device(options);
  typename TypeParam::CpuCache host(options);
  const SequenceId on_device = device.add_sequence(), on_host = host.add_sequence();
  for (const Index rows : {Index{500}, Index{1}, Index{37}, Index{200}}) {
    DeviceInputs in = uneven(options, rows, static_cast<unsigned>(rows));
    device.attend(on_device, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    Tensor<float> out(rows, options.query_heads, options.head_dim);
    host.attend(on_host, 0, in.host.q.view(), in.host.k.view(), in.host.v.view(), out.view());
    EXPECT_LT(relative_distance(in.out.read(), out), .03) << rows;
  }
}

TYPED_TEST(CudaTrellisCodes, TravelInSnapshots) {
  const Options options = learnt_options<TypeParam>(Allocation::head);
  Both<TypeParam> both(options);
  both.feed(uneven(options, 700, 1));
  both.check_snapshots();
}

using CudaTrellisErrors = OnDevice;

TEST_F(CudaTrellisErrors, SayWhatIsMissing) {
  Options options{.layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  using Trellis = TrellisWidths<64, 2, 2>::Cache;
  expect_error([&] { Trellis cache(options); }, {"codes", "scalar", "CudaTrellis"});
  options.codes = Codes::trellis;
  expect_error([&] { DeviceCache<64, 128, 2, 2> cache(options); }, {"codes", "trellis", "CudaTrellis"});
  options.allocation = Allocation::layer;
  expect_error([&] { Trellis cache(options); }, {"allocation", "layer", "CudaSharingTrellis"});
  options.allocation = Allocation::head;
  options.values = ValueCoding::plain;
  expect_error([&] { Trellis cache(options); }, {"values", "plain", "symmetric"});
}

}  // namespace
}  // namespace squat::test
