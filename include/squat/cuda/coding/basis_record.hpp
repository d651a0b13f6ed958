#pragma once

// What the device has learnt of a head, as a record that every backend reads.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/moments.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/coding/learn_bases.cuh"

namespace squat::cuda {

template <int HeadDim>
Evidence evidence_of(const LearntBasis<HeadDim> &learnt, double draws, double queries) {
  return {.key_directions = learnt.key_directions,
          .key_rank = learnt.key_rank,
          .query_rank = learnt.query_rank,
          .draws = draws,
          .queries = queries,
          .channels = HeadDim};
}

/// values: of how many the learnt sum is. in_frame: of tiles, whose mean key is taken off. Without a
/// basis where statistics say nothing, see learn_subspace_basis().
template <int HeadDim>
HeadRecord record_of(const LearntBasis<HeadDim> &learnt, int key_bits, bool in_frame, double values) {
  HeadRecord record;
  if (in_frame) record.mean = rounded_key_mean(learnt.mean);
  record.value_mean = rotated_value_mean(learnt.value_sum, values);
  const auto finite = [](const auto &numbers) {
    return std::all_of(std::begin(numbers), std::end(numbers), [](auto x) { return std::isfinite(x); });
  };
  if (!finite(learnt.matrix) || !finite(learnt.metric) || !finite(learnt.variance)) return record;
  if (!(learnt.weight > 0) || !(learnt.variance[0] > 0)) return record;
  const Eigen::MatrixXd matrix =
      Eigen::Map<const RowMatrix>(learnt.matrix, HeadDim, HeadDim).template cast<double>();
  record.matrix = KeyQuantizer::rounded_basis(matrix, learnt.metric, key_bits);
  record.metric.assign(std::begin(learnt.metric), std::end(learnt.metric));
  record.weight = learnt.weight;
  record.variance.assign(std::begin(learnt.variance), std::end(learnt.variance));
  const BitAllocation allocation = allocate_bits(record.variance, key_bits);
  for (const CodeRun &run : allocation.runs())
    record.widths.push_back({run.bits, static_cast<std::int32_t>(run.channels)});
  return record;
}

}  // namespace squat::cuda
