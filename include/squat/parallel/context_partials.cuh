#pragma once

// The partials of a split context in device memory: on the stream of the cache's calls, without waiting.

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <utility>
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
      : device_(cache.device()), transport_(&transport) {
    const cuda::DeviceScope scope(device_);
    const std::vector<float> &logits = cache.options().sink_logits;
    sink_logits_ = cuda::DeviceBuffer<float>(logits.size());
    cuda::upload<float>(logits, sink_logits_.data(), nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "sink logits");
  }

  static constexpr bool gathers_on_stream = StreamTransport<Transport>;
  static bool is_capturing(cudaStream_t stream) { return cuda::is_capturing(stream); }

  void reserve(const PartialShape &shape, cudaStream_t stream) {
    const cuda::DeviceScope scope(device_);
    const bool capturing = is_capturing(stream);
    const std::size_t own = shape.rank_bytes(),
                      all = shape.ranks > 1 ? static_cast<std::size_t>(shape.ranks) * own : 0;
    if (capturing && (own > own_.size() || all > all_.size()))
      throw Error("squat: stream is being captured, and the batch is new: take the step once before");
    captured_ |= capturing;
    shape_ = shape;
    grow(own_, own);
    grow(all_, all);
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
  void merge(int layer, TokenRange rows, TensorView<S> out, TensorView<float> lse, cudaStream_t stream) {
    const cuda::DeviceScope scope(device_);
    const cuda::MergePartsCall<S> call{
        .blocks = shape_.ranks > 1 ? all_.data() : own_.data(),
        .shape = shape_,
        .first_row = rows.first,
        .out = {out.data, out.token_stride, out.head_stride},
        .lse = {lse.tokens > 0 ? lse.data : nullptr, lse.token_stride, lse.head_stride},
        .sink_logits = sink_logits_.size() > 0 ? sink_logits_.data() + layer * shape_.heads : nullptr};
    cuda::launch_merge_parts(call, rows.last - rows.first, stream);
  }

 private:
  using Memory = cuda::DeviceBuffer<std::byte>;

  std::byte *own(std::size_t place) { return own_.data() + place * shape_.part_bytes; }

  /// What is replaced may be read by kernels until the device has come to it: its release waits.
  /// Captured graphs go on with it.
  void grow(Memory &blocks, std::size_t bytes) {
    if (bytes <= blocks.size()) return;
    if (captured_ && blocks.size() > 0) retired_.push_back(std::exchange(blocks, {}));
    blocks = Memory(bytes);
  }

  int device_;
  Transport *transport_;
  PartialShape shape_;
  cuda::DeviceBuffer<float> sink_logits_;  // [layers, query_heads], or none
  Memory own_, all_;
  std::vector<Memory> retired_;
  bool captured_ = false;
  std::vector<std::byte> staged_;
};

}  // namespace squat::detail
