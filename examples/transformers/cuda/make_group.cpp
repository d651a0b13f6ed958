#include "cuda/make_group.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "squat/core/error.hpp"

namespace squat_kv {
namespace {

using squat::ElementType;

/// An object that was compiled. They are in the rising order of their head_dims.
struct Kernels {
  int head_dim, key_bits, value_bits;
  ElementType exact_rows;
  std::unique_ptr<squat::GroupCache> (*make)(const squat::Options &options);
};

#define KERNELS(head_dim, key_bits, value_bits, rows)        \
  Kernels{head_dim, key_bits, value_bits, ElementType::rows, \
          make_group_of<head_dim, key_bits, value_bits, ElementType::rows>},
const std::array compiled{SQUAT_KV_KERNELS};
#undef KERNELS

const char *name_of(ElementType type) {
  return type == ElementType::float32   ? "float32"
         : type == ElementType::float16 ? "float16"
                                        : "bfloat16";
}

std::string text_of(int head_dim, int key_bits, int value_bits, ElementType exact_rows) {
  return "head_dim " + std::to_string(head_dim) + " with keys of " + std::to_string(key_bits) +
         " bits, values of " + std::to_string(value_bits) + " and exact rows of " + name_of(exact_rows);
}

}  // namespace

std::unique_ptr<squat::GroupCache> make_cuda_group(const squat::Options &options, ElementType exact_rows,
                                                   int key_bits, int value_bits) {
  const int head_dim = std::max(options.head_dim, options.value_dim);
  for (const Kernels &kernels : compiled) {
    if (kernels.head_dim >= head_dim && kernels.key_bits == key_bits &&
        kernels.value_bits == value_bits && kernels.exact_rows == exact_rows)
      return kernels.make(options);
  }
  std::string text = "squat: there are no kernels on CUDA for " +
                     text_of(head_dim, key_bits, value_bits, exact_rows) + "; there are some for";
  for (const Kernels &kernels : compiled) {
    text += &kernels == compiled.data() ? " " : "; ";
    text += text_of(kernels.head_dim, kernels.key_bits, kernels.value_bits, kernels.exact_rows);
  }
  throw squat::Error(text);
}

}  // namespace squat_kv
