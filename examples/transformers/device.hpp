#pragma once

// Where a cache of the package is, and the tensors of its calls.

#include <optional>
#include <string>

#include "squat/model.hpp"

namespace squat_kv {

/// Whether this build of the package has kernels for CUDA.
extern const bool has_cuda;

/// The CPU, or the GPU that was current when it was made.
class Device {
 public:
  /// name: "cpu", "cuda", or "cuda:N". Throws squat::Error for others, for a GPU that is not the current
  /// one, and for any in a build without CUDA.
  explicit Device(const std::string &name);

  /// What makes caches there.
  squat::MakeGroup make_group() const;

  /// "cpu" or "cuda:N".
  std::string name() const;

  /// Throws squat::Error for a tensor that is elsewhere. type, index: as DLPack has them.
  void check_holds(const char *tensor, int type, int index) const;

 private:
  std::optional<int> gpu_;  // its index; none: the CPU
};

}  // namespace squat_kv
