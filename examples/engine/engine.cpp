#include "engine.hpp"

#include <stdexcept>
#include <string>

#include "cpu_engine.hpp"
#ifdef ENGINE_CUDA_HEAD_DIM
#include "cuda_engine.hpp"
#endif

namespace engine {

std::unique_ptr<Engine> make_engine(std::string_view device, const Gguf &file) {
  if (device == "cpu") return std::make_unique<CpuEngine>(file);
#ifdef ENGINE_CUDA_HEAD_DIM
  if (device == "cuda") return std::make_unique<cuda::CudaEngine>(file);
#endif
  throw std::invalid_argument("device " + std::string(device) + ": this program was not built for it");
}

}  // namespace engine
