#pragma once

// The page layouts that kernels are compiled for, and the way from a cache's options to one of them.

#include <initializer_list>
#include <string>

#include "squat/core/error.hpp"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {

/// Numbers that kernels are compiled for.
template <int... Numbers>
struct OneOf {};

/// SharesBits, Kind: see PageLayout.
template <int KeyBits, int ValueBits, class HeadDims, class Groups, bool SharesBits = false,
          Codes Kind = Codes::scalar>
class PageLayouts;

template <int KeyBits, int ValueBits, int... HeadDims, int... Groups, bool SharesBits, Codes Kind>
class PageLayouts<KeyBits, ValueBits, OneOf<HeadDims...>, OneOf<Groups...>, SharesBits, Kind> {
 public:
  /// Throws the Error of what the kernels are not compiled for.
  static void check(int head_dim, int group) {
    if (!((head_dim == HeadDims) || ...)) throw_invalid("head_dim", head_dim, list({HeadDims...}));
    if (!((group == Groups) || ...)) throw_invalid("page_tokens", group, list({Groups...}));
    if (!fits_kernels(head_dim, group)) {
      throw_invalid(
          "page_tokens", group,
          "fewer on CUDA for heads of " + std::to_string(head_dim) + " channels: 32 or, up to 512, 64");
    }
  }

  /// The least head_dim that holds so many channels; the same where there is none.
  static int padded(int head_dim) {
    int least = 0;
    ((HeadDims >= head_dim && (least == 0 || HeadDims < least) ? least = HeadDims : least), ...);
    return least > 0 ? least : head_dim;
  }

  /// Runs run<Layout>() for one that check() lets pass.
  template <class Run>
  static void with(int head_dim, int group, Run &&run) {
    ((head_dim == HeadDims && (with_group<HeadDims>(group, run), true)) || ...);
  }

 private:
  template <int HeadDim, class Run>
  static void with_group(int group, Run &run) {
    ((group == Groups && (run_with<HeadDim, Groups>(run), true)) || ...);
  }

  template <int HeadDim, int Group, class Run>
  static void run_with(Run &run) {
    if constexpr (fits_kernels(HeadDim, Group))
      run.template operator()<PageLayout<HeadDim, Group, KeyBits, ValueBits, SharesBits, Kind>>();
  }

  static std::string list(std::initializer_list<int> numbers) {
    std::string text = "one of";
    for (int number : numbers) text.append(" ").append(std::to_string(number));
    return text + " on CUDA";
  }
};

}  // namespace squat::cuda
