#include "device.hpp"

#include <nanobind/ndarray.h>

#if defined(SQUAT_KV_CUDA)
#include <cuda_runtime_api.h>

#include "cuda/make_group.hpp"
#endif

namespace squat_kv {
namespace {

constexpr int on_cpu = nanobind::device::cpu::value, on_cuda = nanobind::device::cuda::value;

std::string name_of(int index) { return "cuda:" + std::to_string(index); }

#if defined(SQUAT_KV_CUDA)
int current_gpu() {
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index); error != cudaSuccess)
    throw squat::Error(std::string("squat: there is no GPU: ") + cudaGetErrorString(error));
  return index;
}
#else
int current_gpu() {
  throw squat::Error("squat: device is cuda; this build of squat-kv is for the CPU alone");
}
#endif

}  // namespace

#if defined(SQUAT_KV_CUDA)
const bool has_cuda = true;
#else
const bool has_cuda = false;
#endif

Device::Device(const std::string &name) {
  if (name == "cpu") return;
  if (!name.starts_with("cuda"))
    throw squat::Error("squat: device is '" + name + "'; it must be cpu, cuda or cuda:N");
  gpu_ = current_gpu();
  if (name != "cuda" && name != name_of(*gpu_))
    throw squat::Error("squat: device is '" + name + "'; it must be the current one, " + name_of(*gpu_));
}

squat::MakeGroup Device::make_group() const {
#if defined(SQUAT_KV_CUDA)
  if (gpu_) return make_cuda_group;
#endif
  return squat::make_cpu_group;
}

std::string Device::name() const { return gpu_ ? name_of(*gpu_) : "cpu"; }

void Device::check_holds(const char *tensor, int type, int index) const {
  if (gpu_ ? type == on_cuda && index == *gpu_ : type == on_cpu) return;
  const std::string where = type == on_cuda  ? "on " + name_of(index)
                            : type == on_cpu ? "on the CPU"
                                             : "elsewhere";
  throw squat::Error("squat: " + std::string(tensor) + " is " + where + "; the cache is on " +
                     (gpu_ ? name_of(*gpu_) : "the CPU"));
}

}  // namespace squat_kv
