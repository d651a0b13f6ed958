#pragma once

// How ranks with a GPU each reach each other over NCCL: a squat::StreamTransport.

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "squat/core/error.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_scope.hpp"

/// Ranks find each other by a file that all of them see: rank 0 writes NCCL's address into it, the
/// others wait for it. What is on a device is gathered on the stream it is told, for which nobody waits;
/// what is in the host's memory goes by way of a device, and its time limit is how long another rank may
/// be away. Throws squat::Error then, after which ranks that are left cannot go on together: end.
class NcclTransport {
 public:
  /// On the device that is current, by all ranks at once; it outlives what they make of it. path: of no
  /// file yet. seconds: the limit.
  NcclTransport(int rank, int ranks, const std::string &path, double seconds)
      : rank_(rank), ranks_(ranks), limit_(seconds) {
    squat::cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    const ncclUniqueId address = rank == 0 ? written(path) : found(path);
    check(ncclCommInitRank(&communicator_, ranks, address, rank));
  }
  ~NcclTransport() {
    // Where something was thrown, ranks are apart, and none waits for another.
    if (communicator_ != nullptr)
      (void)(std::uncaught_exceptions() > 0 ? ncclCommAbort(communicator_)
                                            : ncclCommDestroy(communicator_));
    (void)cudaStreamDestroy(stream_);
  }
  NcclTransport(const NcclTransport &) = delete;
  NcclTransport &operator=(const NcclTransport &) = delete;

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  /// Of device memory, in its turn on the stream.
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all, cudaStream_t stream) {
    check(ncclAllGather(mine.data(), all.data(), mine.size(), ncclUint8, communicator_, stream));
    bytes_ += all.size() - mine.size();
  }

  /// Of the host's.
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
    const squat::cuda::DeviceBuffer<std::byte> from(mine.size()), to(all.size());
    squat::cuda::upload<std::byte>(mine, from.data(), stream_);
    check(ncclAllGather(from.data(), to.data(), mine.size(), ncclUint8, communicator_, stream_));
    wait(stream_);
    squat::cuda::download<std::byte>(to.data(), all, stream_);
  }
  void broadcast(std::span<std::byte> bytes) {
    const squat::cuda::DeviceBuffer<std::byte> staged(bytes.size());
    squat::cuda::upload<std::byte>(bytes, staged.data(), stream_);
    check(
        ncclBroadcast(staged.data(), staged.data(), bytes.size(), ncclUint8, 0, communicator_, stream_));
    wait(stream_);
    squat::cuda::download<std::byte>(staged.data(), bytes, stream_);
  }

  /// Waits for a stream whose work waits for other ranks, no longer than the limit.
  void wait(cudaStream_t stream) {
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      const cudaError_t state = cudaStreamQuery(stream);
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) squat::cuda::check(state, "NCCL's stream");
      ncclResult_t failure = ncclSuccess;
      check(ncclCommGetAsyncError(communicator_, &failure));
      check(failure);
      if (seconds_since(begin) > limit_) {
        (void)ncclCommAbort(std::exchange(communicator_, nullptr));  // ends kernels that wait
        throw_away();
      }
      std::this_thread::yield();
    }
  }

  /// From other ranks, in all calls on streams.
  std::size_t bytes() const { return bytes_; }

 private:
  static double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  [[noreturn]] void throw_away() const {
    throw squat::Error("rank " + std::to_string(rank_) + ": no word from the other ranks for " +
                       std::to_string(limit_) + " s");
  }

  void check(ncclResult_t result) const {
    if (result != ncclSuccess)
      throw squat::Error("rank " + std::to_string(rank_) + ": NCCL: " + ncclGetErrorString(result));
  }

  /// The address of this rank, in a file that appears with all of it.
  ncclUniqueId written(const std::string &path) const {
    if (std::filesystem::exists(path)) squat::throw_invalid("path", path, "that of no file yet");
    ncclUniqueId address;
    check(ncclGetUniqueId(&address));
    const std::string unfinished = path + ".unfinished";
    std::ofstream file(unfinished, std::ios::binary);
    file.write(address.internal, sizeof address.internal);
    file.close();
    if (!file) throw squat::Error("squat: cannot write " + unfinished);
    std::filesystem::rename(unfinished, path);
    return address;
  }

  ncclUniqueId found(const std::string &path) const {
    const auto begin = std::chrono::steady_clock::now();
    while (!std::filesystem::exists(path)) {
      if (seconds_since(begin) > limit_) throw_away();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ncclUniqueId address;
    std::ifstream file(path, std::ios::binary);
    if (!file.read(address.internal, sizeof address.internal))
      throw squat::Error("squat: cannot read " + path);
    return address;
  }

  int device_ = squat::cuda::current_device();
  int rank_;
  int ranks_;
  double limit_;
  cudaStream_t stream_ = nullptr;
  ncclComm_t communicator_ = nullptr;
  std::size_t bytes_ = 0;
};
