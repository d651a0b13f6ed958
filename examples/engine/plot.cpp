#include "plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace engine {
namespace {

constexpr double left = 90, right = 560, top = 30, bottom = 430;
constexpr double label_step = 18, character = 8;  // of the labels, at font size 13

/// Maps [low, high] to [from, to].
struct Axis {
  double low, high, from, to;
  double operator()(double x) const { return from + (x - low) / (high - low) * (to - from); }
};

void tick(std::string &svg, double x, double y, double x2, double y2, double tx, double ty,
          const char *anchor, const std::string &text) {
  svg += fmt::format("<line x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}' stroke='#ddd'/>\n", x, y, x2,
                     y2);
  svg += fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='{}'>{}</text>\n", tx, ty, anchor, text);
}

}  // namespace

std::string plot_svg(std::vector<PlotPoint> points) {
  std::erase_if(points, [](const PlotPoint &p) { return !(p.kl > 0); });
  std::sort(points.begin(), points.end(), [](const auto &a, const auto &b) { return a.kl > b.kl; });
  Axis x{0, 1, left, right}, y{-1, 0, bottom, top};
  for (const PlotPoint &p : points) x.high = std::max(x.high, std::ceil(p.bits + .5));
  if (!points.empty()) {
    y.high = std::ceil(std::log10(points.front().kl));
    y.low = std::min(std::floor(std::log10(points.back().kl)), y.high - 1);
  }
  // Labels stand in a column of their own, in the order of their points and never closer than a line.
  std::string labels;
  double label_y = top, width = right;
  for (const PlotPoint &p : points) {
    const double px = x(p.bits), py = y(std::log10(p.kl));
    const std::string text = fmt::format("{} ({:.4f})", p.label, p.kl);
    label_y = std::max(label_y + label_step, py);
    width = std::max(width, right + 30 + character * static_cast<double>(text.size()));
    labels += fmt::format("<line x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}' stroke='#aac'/>\n", px,
                          py, right + 12, label_y);
    labels += fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='5' fill='#2457a7'/>\n", px, py);
    labels += fmt::format("<text x='{:.1f}' y='{:.1f}'>{}</text>\n", right + 16, label_y + 4, text);
  }
  const double height = std::max(bottom, label_y) + 60;
  std::string svg = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='{0}' height='{1}' viewBox='0 0 {0} {1}' "
      "font-family='sans-serif' "
      "font-size='13'>\n<rect width='100%' height='100%' fill='white'/>\n",
      width, height);
  for (double bits = 0; bits <= x.high; ++bits) {
    tick(svg, x(bits), top, x(bits), bottom, x(bits), bottom + 20, "middle", fmt::format("{}", bits));
  }
  for (double power = y.low; power <= y.high; ++power) {
    tick(svg, left, y(power), right, y(power), left - 8, y(power) + 4, "end",
         fmt::format("{:g}", std::pow(10, power)));
  }
  svg += labels;
  svg += fmt::format(
      "<text x='{:.1f}' y='{:.1f}' text-anchor='middle'>bits per element, everything counted</text>\n",
      (left + right) / 2, bottom + 44);
  svg += fmt::format(
      "<text transform='translate(24 {:.1f}) rotate(-90)' text-anchor='middle'>mean KL to the exact "
      "cache, nats</text>\n",
      (top + bottom) / 2);
  return svg + "</svg>\n";
}

}  // namespace engine
