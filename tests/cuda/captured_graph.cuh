#pragma once

// Work on a stream, captured to be replayed.

#include <cuda_runtime.h>

#include "device_array.hpp"

namespace squat::test {

class CapturedGraph {
 public:
  /// Captures what work() puts into the stream, which has been done once before.
  template <class Work>
  CapturedGraph(cudaStream_t stream, Work &&work) : stream_(stream) {
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    work();
    cudaGraph_t graph = nullptr;
    require(cudaStreamEndCapture(stream, &graph));
    require(cudaGraphInstantiate(&executable_, graph, 0));
    require(cudaGraphDestroy(graph));
  }
  ~CapturedGraph() { cudaGraphExecDestroy(executable_); }
  CapturedGraph(const CapturedGraph &) = delete;
  CapturedGraph &operator=(const CapturedGraph &) = delete;

  void replay() const { require(cudaGraphLaunch(executable_, stream_)); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace squat::test
