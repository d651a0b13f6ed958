#pragma once

// Times work on a stream with CUDA events and a cold L2 cache.

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "squat/cuda/error.hpp"
#include "squat/cuda/state/device_buffer.hpp"

namespace bench {

using squat::cuda::check;
using squat::cuda::DeviceBuffer;

/// Reads a buffer. Reading, not writing: no dirty line is left, whose way to memory the work timed next
/// would have to wait for.
static __global__ void read_all(const float4 *from, std::size_t count, float *never) {
  float sum = 0;
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float4 x = from[i];
    sum += x.x + x.y + x.z + x.w;
  }
  if (sum != 0) *never = sum;  // the buffer is zero
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event &) = delete;
  Event &operator=(const Event &) = delete;

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  double seconds_since(const Event &begin) const {
    float milliseconds = 0;
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_{};
};

/// Seconds of repetitions of the same work.
struct Times {
  std::vector<double> seconds;

  double median() const {
    std::vector<double> sorted = seconds;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }
  double mean() const {
    return std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  }
};

/// A captured graph.
class Graph {
 public:
  template <class Work>
  Graph(cudaStream_t stream, Work &&work) {
    cudaGraph_t graph{};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    work();
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t error = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
  }
  ~Graph() { cudaGraphExecDestroy(graph_); }
  Graph(const Graph &) = delete;
  Graph &operator=(const Graph &) = delete;

  void launch(cudaStream_t stream) { check(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t graph_{};
};

class Stopwatch {
 public:
  static constexpr int repetitions = 40, warm_up = 3;

  Stopwatch() : flushed_((std::size_t{256} << 20) / sizeof(float4)), never_(1) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    flushed_.fill(0, stream_);
  }
  ~Stopwatch() { cudaStreamDestroy(stream_); }
  Stopwatch(const Stopwatch &) = delete;
  Stopwatch &operator=(const Stopwatch &) = delete;

  cudaStream_t stream() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  /// What `work` takes the GPU, work by work: the launches of a repetition wait behind the reading of
  /// 256 MB that cools the cache, so what the host takes for them hardly shows. `between` is not timed.
  template <class Work, class Between>
  Times time(Work &&work, Between &&between, int count = repetitions) {
    for (int i = 0; i < warm_up; ++i) {
      work();
      between();
    }
    Times times;
    Event begin, end;
    for (int i = 0; i < count; ++i) {
      read_all<<<1024, 256, 0, stream_>>>(flushed_.data(), flushed_.size(), never_.data());
      begin.record(stream_);
      work();
      end.record(stream_);
      times.seconds.push_back(end.seconds_since(begin));
      between();
    }
    return times;
  }
  template <class Work>
  Times time(Work &&work) {
    return time(work, [] {});
  }

  /// The same of replays of the graph that `work` is captured in.
  template <class Work>
  Times time_replays(Work &&work) {
    work();  // what is allocated once
    wait();
    Graph graph(stream_, work);
    return time([&] { graph.launch(stream_); });
  }

 private:
  cudaStream_t stream_{};
  DeviceBuffer<float4> flushed_;
  DeviceBuffer<float> never_;
};

/// What the host takes until `work` returns.
template <class Work>
double host_seconds(Work &&work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace bench
