#pragma once

// What the device has learnt of a head, as a record that every backend reads, and back.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/rounded_matrix.hpp"
#include "squat/cuda/coding/learnt_basis.cuh"

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

/// bytes: the matrix was rounded to bytes, else to words. values: of how many the learnt sum is.
/// in_frame: of tiles, whose mean key is taken off. Without a basis where statistics say nothing, see
/// learn_subspace_basis().
template <int HeadDim>
HeadRecord record_of(const LearntBasis<HeadDim> &learnt, int key_bits, bool bytes, bool in_frame,
                     double values) {
  HeadRecord record;
  if (in_frame) record.mean = rounded_key_mean(learnt.mean);
  record.value_mean = rotated_value_mean(learnt.value_sum, values);
  const auto finite = [](const auto &numbers) {
    return std::all_of(std::begin(numbers), std::end(numbers), [](auto x) { return std::isfinite(x); });
  };
  if (!finite(learnt.scales) || !finite(learnt.metric) || !finite(learnt.variance)) return record;
  if (!(learnt.weight > 0) || !(learnt.variance[0] > 0)) return record;
  record.matrix.outputs = record.matrix.inputs = HeadDim;
  record.matrix.bytes = bytes;
  record.matrix.codes.assign(std::begin(learnt.codes), std::end(learnt.codes));
  record.matrix.scales.assign(std::begin(learnt.scales), std::end(learnt.scales));
  if (bytes) {
    record.matrix.input_scales.assign(std::begin(learnt.input_scales), std::end(learnt.input_scales));
  }
  record.metric.assign(std::begin(learnt.metric), std::end(learnt.metric));
  record.weight = learnt.weight;
  record.variance.assign(std::begin(learnt.variance), std::end(learnt.variance));
  const BitAllocation allocation = allocate_bits(record.variance, key_bits);
  for (const CodeRun &run : allocation.runs())
    record.widths.push_back({run.bits, static_cast<std::int32_t>(run.channels)});
  return record;
}

/// What the device inverts of a basis that was rounded elsewhere.
template <int HeadDim>
void take_matrix(const RoundedMatrix &matrix, LearntBasis<HeadDim> &basis) {
  std::copy(matrix.codes.begin(), matrix.codes.end(), basis.codes);
  std::copy(matrix.scales.begin(), matrix.scales.end(), basis.scales);
  std::copy(matrix.input_scales.begin(), matrix.input_scales.end(), basis.input_scales);
}

}  // namespace squat::cuda
