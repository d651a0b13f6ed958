#pragma once

// How far a model over a packed cache is from the same model over the exact one.

#include <Eigen/Core>
#include <vector>

namespace engine {

using LogitRow = Eigen::Ref<const Eigen::RowVectorXf>;

/// One prediction, compared with the exact cache's.
struct Prediction {
  double negative_log_likelihood = 0;  // of the token that follows, nats
  double kl = 0;                       // KL(exact || coded), nats
  bool top1 = false;                   // the same most likely token
};

Prediction compare(LogitRow exact, LogitRow coded, int next_token);

struct Summary {
  double perplexity = 0;
  double kl_mean = 0;
  double kl_p99 = 0;
  double top1 = 0;
};

Summary summarize(const std::vector<Prediction> &predictions);

}  // namespace engine
