#pragma once

// What the benchmarks run on, and what they are called:
// OPERATION/CODING/kKvV/qQ_kvH_dD/SEQUENCESxTOKENS.

#include <optional>
#include <string>

#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"

namespace bench {

struct Shape {
  int query_heads, kv_heads, head_dim;

  std::string name() const {
    return "q" + std::to_string(query_heads) + "_kv" + std::to_string(kv_heads) + "_d" +
           std::to_string(head_dim);
  }
};

/// One layer of some sequences of one length.
struct Workload {
  Shape shape;
  int sequences;  ///< 0: as many as fit
  squat::Index tokens;

  std::string name() const {
    return shape.name() + "/" + (sequences == 0 ? "fit" : std::to_string(sequences)) + "x" +
           std::to_string(tokens);
  }
};

/// How keys are coded; none: what Options choose for the width.
using MaybeCoding = std::optional<squat::Coding>;

struct NamedCoding {
  const char *name;
  MaybeCoding coding;
};

/// head_dim of every workload: the kernels the benchmarks are compiled with.
inline constexpr int head_dim = 128;

/// What pack, append and learning are timed on.
inline constexpr Shape llama3_8b{32, 8, head_dim};

/// Registers what there is to time at a width. Defined in width.cu, an object a width.
template <int Bits>
void register_width();

/// Registers what a layer does once: statistics and bases.
void register_learning();

/// Registers decode steps of heads that share bits.
void register_sharing();

}  // namespace bench
