#pragma once

#include <string>
#include <vector>

namespace engine {

struct PlotPoint {
  std::string label;
  double bits;
  double kl;
};

/// An SVG picture of KL (logarithmic) against bits per element.
std::string plot_svg(std::vector<PlotPoint> points);

}  // namespace engine
