#pragma once

// The names of the codings and their settings.

namespace squat {

/// How packed keys are coded.
enum class Coding {
  plain,       ///< per-channel rounding (KIVI, Liu et al., ICML 2024): the baseline
  orthogonal,  ///< rounding error kept orthogonal to the query subspace (SQuat,
               ///< Wang et al., COLM 2025)
  subspace,    ///< coordinates in the joint eigenbasis of queries and keys, bits
               ///< where queries look and keys vary
};

/// Whether a coding depends on the queries and keys of a prompt.
constexpr bool learns_from_prompt(Coding coding) { return coding != Coding::plain; }

/// How packed values are coded.
enum class ValueCoding {
  plain,      ///< asymmetric, groups of channels of one token (KIVI)
  symmetric,  ///< Hadamard rotation over the head, one unbiased scale a token
};

/// How a sequence's newest tokens are kept, behind its sinks and until they are packed.
enum class TailCoding {
  exact,  ///< as T
  int8,   ///< keys and values alike rotated as symmetric values are, then 8 bits an element and one
          ///< float16 scale a row: the largest magnitude over 127
};

/// What the bits of packed keys and values of 1 to 3 bits stand for; wider codes are always scalar.
enum class Codes {
  scalar,   ///< a code names its level
  trellis,  ///< a code and those before it in the row name its level (coding/trellis.hpp): less error at
            ///< the same bits for more work
};

/// Over what the bits of packed keys and values are spread, their sum fixed.
enum class Allocation {
  head,   ///< the channels of a head's keys: every head's page has as many bits
  layer,  ///< those of all KV heads of a layer, and their values, by what attention does with them
  model,  ///< those of all layers: pages of a layer have one size, which is the layer's own
};
constexpr const char *name_of(Allocation allocation) {
  constexpr const char *names[] = {"head", "layer", "model"};
  return names[static_cast<int>(allocation)];
}

/// How the zero and the scale of an affine group are found.
enum class AffineFit {
  minmax,         ///< the group's extremes
  clip_and_gain,  ///< at 1 and 2 bits the clipped range of least squared error; at
                  ///< every width then rescaled so that the error is orthogonal
                  ///< to the group
};

/// Settings of Coding::orthogonal. `rank` 0 is the scale-free metric C /
/// mean(diag C) + I over all of the queries' moments C. A positive rank is the
/// published form I + lambda Q^T Q with Q the `rank` leading right singular
/// vectors of the prompt's queries times their singular values (SQuat, section
/// 4).
struct OrthogonalOptions {
  int rank = 0;          ///< 0, or singular vectors of the published form, at most head_dim
  float lambda = 1e-3f;  ///< weight of the query subspace in the published form; not read with rank 0
  int block = 1;         ///< channels rounded together, without feedback inside; must
                         ///< divide head_dim
  bool order = true;     ///< round channels in falling order of spread * sqrt(metric)
};

}  // namespace squat
