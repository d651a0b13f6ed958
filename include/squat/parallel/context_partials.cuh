#pragma once

// The partials of a split context in device memory: on the stream of the cache's calls, without waiting.

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <vector>

#include "squat/cache/attention_tensors.hpp"
#include "squat/cache/call.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_scope.hpp"
#include "squat/parallel/context_partials.hpp"
#include "squat/parallel/merge_parts.cuh"
#include "squat/parallel/rank_transport.hpp"

namespace squat {

/// A transport that gathers device memory too, in its turn among the work of a stream.
template <class Transport>
concept StreamTransport = RankTransport<Transport> &&
    requires(Transport &transport, std::span<const std::byte> mine, std::span<std::byte> all,
             cudaStream_t stream) {
  transport.all_gather(mine, all, stream);
};

}  // namespace squat

namespace squat::detail {

/// Where the transport is none, partials go by way of the host's memory, and the stream is waited for.
template <class Transport>
class ContextPartials<cudaStream_t, Transport> {
 public:
  /// On the cache's device.
  template <class Cache>
  ContextPartials(const Cache &cache, Transport &transport)
      : device_(cache.device()), transport_(&transport) {}

  static void check(cudaStream_t stream) {
    if (cuda::is_capturing(stream))
      throw Error("squat: stream is being captured, and a split context counts its steps on the host");
  }

  void reserve(const PartialShape &shape, cudaStream_t) {
    const cuda::DeviceScope scope(device_);
    shape_ = shape;
    grow(own_, shape.rank_bytes());
    grow(all_, shape.ranks > 1 ? static_cast<std::size_t>(shape.ranks) * shape.rank_bytes() : 0);
  }

  template <Element S>
  AttentionTensors<S> block(std::size_t place, const AttentionTensors<S> &tensors) {
    return shape_.in_block(own(place), tensors);
  }

  void clear(std::size_t place, cudaStream_t stream) {
    const cuda::DeviceScope scope(device_);
    cuda::check(cudaMemsetAsync(own(place), cuda::unseen_byte, shape_.lse_bytes, stream), "partials");
  }

  void gather(cudaStream_t stream) {
    if (shape_.ranks == 1) return;
    const cuda::DeviceScope scope(device_);
    const std::size_t bytes = shape_.rank_bytes(),
                      all_bytes = bytes * static_cast<std::size_t>(shape_.ranks);
    if constexpr (StreamTransport<Transport>) {
      transport_->all_gather(std::span<const std::byte>(own_.data(), bytes),
                             std::span<std::byte>(all_.data(), all_bytes), stream);
    } else {
      staged_.resize(bytes + all_bytes);
      const auto mine = std::span(staged_).first(bytes), all = std::span(staged_).last(all_bytes);
      cuda::download<std::byte>(own_.data(), mine, stream);
      transport_->all_gather(mine, all);
      cuda::upload<std::byte>(all, all_.data(), stream);
    }
  }

  template <Element S>
  void merge(TokenRange rows, TensorView<S> out, TensorView<float> lse, cudaStream_t stream) {
    const cuda::DeviceScope scope(device_);
    const cuda::MergePartsCall<S> call{
        .blocks = shape_.ranks > 1 ? all_.data() : own_.data(),
        .shape = shape_,
        .first_row = rows.first,
        .out = {out.data, out.token_stride, out.head_stride},
        .lse = {lse.tokens > 0 ? lse.data : nullptr, lse.token_stride, lse.head_stride}};
    cuda::launch_merge_parts(call, rows.last - rows.first, stream);
  }

 private:
  using Memory = cuda::DeviceBuffer<std::byte>;

  std::byte *own(std::size_t place) { return own_.data() + place * shape_.part_bytes; }

  /// What is replaced may be read by kernels until the device has come to it: its release waits.
  static void grow(Memory &blocks, std::size_t bytes) {
    if (bytes > blocks.size()) blocks = Memory(bytes);
  }

  int device_;
  Transport *transport_;
  PartialShape shape_;
  Memory own_, all_;
  std::vector<std::byte> staged_;
};

}  // namespace squat::detail
