// The attention kernels on sequences made by hand, against double precision: what codes, scales, bases
// and modes stand for is worked out here anew, element by element.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "squat/coding/hadamard.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/kernels/launch_attend.cuh"

namespace squat::cuda {
namespace {

bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

template <class Element>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<Element> &elements) : size_(elements.size()) {
    check(cudaMalloc(&data_, std::max<std::size_t>(1, size_) * sizeof(Element)), "test");
    check(cudaMemcpy(data_, elements.data(), size_ * sizeof(Element), cudaMemcpyHostToDevice), "test");
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice &) = delete;
  OnDevice &operator=(const OnDevice &) = delete;
  Element *data() const { return data_; }
  std::vector<Element> read() const {
    std::vector<Element> elements(size_);
    check(cudaMemcpy(elements.data(), data_, size_ * sizeof(Element), cudaMemcpyDeviceToHost), "test");
    return elements;
  }

 private:
  Element *data_ = nullptr;
  std::size_t size_;
};

struct Case {
  int query_heads = 8, kv_heads = 2;
  std::vector<int> lengths = {700};  // of the tail and pages of each sequence, without sinks
  std::vector<int> tokens = {1};
  int sinks = 4;
  bool basis = true, mean = true, interleaved = false;
  long long base_step = 0;              // of the positions that pages are turned back by
  bool cut_pages = false;               // pages of which only a part counts
  int pairs = 0;                        // of channels that turn; 0: all
  int packed_tokens = 0;                // of a call, at least, where there are pages enough
  double key_size = 1, value_size = 1;  // of the scales of pages
  int window = 0;                       // see ScoreRule
  double soft_cap = 0;
  bool slopes = false;
};

/// Query rows of a KV head from which on the kernels of attend_rows.cuh attend; 0: the measured border.
int border_rows = 0;

/// A head's coding in double precision.
struct HeadModel {
  std::vector<double> inverse;     // A^-T, [coordinate, channel]
  std::vector<double> projection;  // [modes, channel]
  std::vector<int> widths;         // of units
  std::vector<float> value_mean;   // rotated
};

/// T: of exact numbers.
template <class Layout, ValueCoding Values, class T = half>
class World {
 public:
  static constexpr int d = Layout::HeadDim, group = Layout::Group;
  static constexpr int frame = 2 * group, mode_tiles = 3, modes = 16 * mode_tiles - 5;

  explicit World(const Case &c) : case_(c), random_(7) {
    make_coding();
    for (std::size_t i = 0; i < c.lengths.size(); ++i) make_sequence(c.lengths[i], c.tokens[i]);
    run();
  }

  /// |out - reference| / |reference|.
  double distance() const { return std::sqrt(difference_ / norm_); }

 private:
  double normal(double scale = 1) { return scale * distribution_(random_); }
  int pairs() const { return case_.pairs > 0 ? case_.pairs : d / 2; }
  int below(int most) { return static_cast<int>(random_() % static_cast<unsigned>(most)); }

  template <class Element>
  Element *keep(const std::vector<Element> &elements) {
    auto memory = std::make_shared<OnDevice<Element>>(elements);
    kept_.push_back(memory);
    return memory->data();
  }

  /// A matrix [rows, columns] as tiles of A; it becomes what float16 holds of it.
  uint4 *tiles_of(std::vector<double> &matrix, int rows, int columns) {
    const int row_tiles = (rows + 15) / 16;
    std::vector<half> tiles(static_cast<std::size_t>(row_tiles * 16 * columns), half(0.0f));
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) {
        double &x = matrix[static_cast<std::size_t>(r * columns + c)];
        const half element(static_cast<float>(x));
        x = static_cast<double>(element);
        tiles[static_cast<std::size_t>((r / 16 * (columns / 16) + c / 16) * 256 +
                                       tile_element(r % 16, c % 16))] = element;
      }
    }
    return reinterpret_cast<uint4 *>(keep(tiles));
  }

  /// The mode rows, [frame, modes]: tiles of one mode tile follow each other.
  uint4 *mode_tiles_of(std::vector<double> &rows) {
    std::vector<half> tiles(rows.size());
    for (int r = 0; r < frame; ++r) {
      for (int m = 0; m < 16 * mode_tiles; ++m) {
        double &x = rows[static_cast<std::size_t>(r * 16 * mode_tiles + m)];
        const half element(static_cast<float>(x));
        x = static_cast<double>(element);
        tiles[static_cast<std::size_t>((m / 16 * (frame / 16) + r / 16) * 256 +
                                       tile_element(r % 16, m % 16))] = element;
      }
    }
    return reinterpret_cast<uint4 *>(keep(tiles));
  }

  void make_coding() {
    for (int i = 0; i < pairs(); ++i)
      frequencies_.push_back(static_cast<float>(std::pow(1e4, -2.0 * i / d)));
    mode_rows_.resize(frame * 16 * mode_tiles);
    for (int r = 0; r < frame; ++r) {
      for (int m = 0; m < modes; ++m) mode_rows_[r * 16 * mode_tiles + m] = normal(.2);
    }
    std::vector<HeadTables> heads;
    for (int h = 0; h < case_.kv_heads; ++h) {
      HeadModel model;
      HeadTables head{};
      if (case_.basis) {
        model.inverse.resize(d * d);
        for (double &x : model.inverse) x = normal(1 / std::sqrt(double(d)));
        head.basis = tiles_of(model.inverse, d, d);
      }
      head.projection_unit = 4;
      head.mode_tiles = mode_tiles;
      if (case_.mean) {
        model.projection.resize(16 * mode_tiles * d, 0.0);
        for (int i = 0; i < modes * d; ++i) model.projection[i] = normal(.03);
        head.projection = tiles_of(model.projection, 16 * mode_tiles, d);
        for (double &x : model.projection) x *= 4;
      }
      // As many bits as the uniform width spends, in any mixture.
      for (int unit = 0; unit < Layout::key_units; ++unit) model.widths.push_back(Layout::KeyBits % 16);
      if (Layout::KeyBits == 2 || Layout::KeyBits == 4) {
        int left = Layout::KeyBits * Layout::key_units;
        for (int unit = 0; unit < Layout::key_units; ++unit) {
          const int width = unit == 0 && h % 2 == 0        ? 8
                            : unit < Layout::key_units / 3 ? 4
                                                           : Layout::KeyBits;
          model.widths[unit] = std::min(width, left / 2 * 2 == 6 ? 4 : left);
          left -= model.widths[unit];
        }
      }
      std::copy(model.widths.begin(), model.widths.end(), head.widths);
      const auto units_of = [&](int bits) {
        return static_cast<int>(std::count(model.widths.begin(), model.widths.end(), bits));
      };
      head.eight_bit_units = units_of(8);
      head.four_bit_units = units_of(4);
      head.two_bit_units = units_of(2);
      for (int c = 0; c < d; ++c) model.value_mean.push_back(static_cast<float>(normal()));
      head.value_mean = keep(model.value_mean);
      models_.push_back(model);
      heads.push_back(head);
    }
    CodingTables tables{};
    tables.heads = keep(heads);
    tables.tiles = {.inverse_frequencies = keep(frequencies_),
                    .turns = keep(table_turns(frequencies_)),
                    .pairs = pairs(),
                    .interleaved = case_.interleaved,
                    .frame = frame,
                    .mode_tiles = mode_tiles,
                    .mode_rows = mode_tiles_of(mode_rows_),
                    .angles = nullptr};
    tables.learnt = 1;
    codings_ = keep(std::vector<CodingTables>{tables});
  }

  struct Page {
    std::vector<std::uint8_t> bytes;
    PageEntry entry;
    std::vector<bool> in_basis, about_mean;  // a head
    std::vector<double> keys, values;        // [heads, group, d], as codes say; values rotated
  };

  /// Writes one code of a plane of zeros.
  static void put(std::uint8_t *plane, CodePlace at, int code) {
    plane[at.byte] = static_cast<std::uint8_t>(plane[at.byte] | code << at.bit);
  }
  static void put_key(std::uint8_t *unit, int bits, int token, int column, int code) {
    if (bits == 3) {
      put(unit, key_place(2, Layout::unit, token, column), code & 3);
      put(unit + Layout::key_unit_bytes(2), key_place(1, Layout::unit, token, column), code >> 2);
    } else {
      put(unit, key_place(bits, Layout::unit, token, column), code);
    }
  }
  static void put_value(std::uint8_t *step, int channel, int token, int code) {
    constexpr int bits = Layout::ValueBits, tiles = Layout::channel_tiles;
    if (bits == 3) {
      put(step, value_place(2, tiles, channel, token), code & 3);
      put(step + value_plane_bytes(2, tiles), value_place(1, tiles, channel, token), code >> 2);
    } else {
      put(step, value_place(bits, tiles, channel, token), code);
    }
  }

  half random_scale(double scale) {
    return half(static_cast<float>(scale * (.5 + (random_() % 1000) / 1000.0)));
  }

  void make_keys(Page &page, int h, std::uint8_t *bytes) {
    double *keys = page.keys.data() + h * group * d;
    if constexpr (Layout::KeyBits == 16) {
      auto *elements = reinterpret_cast<T *>(bytes);
      for (int t = 0; t < group; ++t) {
        for (int c = 0; c < d; ++c) {
          const T x(static_cast<float>(normal()));
          elements[t / 16 * 16 * d + BlockLayout<d>::key(t % 16, c)] = x;
          keys[t * d + c] = static_cast<double>(x);
        }
      }
    } else {
      const bool in_basis = case_.basis && (h + static_cast<int>(pages_made_)) % 3 != 2;
      page.in_basis[h] = in_basis;
      page.about_mean[h] = Layout::ValueBits < 16 && Values == ValueCoding::symmetric &&
                           (h + static_cast<int>(pages_made_)) % 4 != 1;
      auto *scales = reinterpret_cast<half *>(bytes + Layout::key_scales);
      auto *zeros = reinterpret_cast<half *>(bytes + Layout::key_zeros);
      std::uint8_t *unit = bytes + Layout::key_codes;
      for (int u = 0; u < Layout::key_units; ++u) {
        const int bits = in_basis ? models_[h].widths[u] : Layout::KeyBits;
        for (int i = 0; i < Layout::unit; ++i) {
          const int c = u * Layout::unit + i;
          const half scale = random_scale(case_.key_size * 3.0 / (1 << bits)),
                     zero(static_cast<float>(normal(.7)));
          const bool marked = (c == 0 && in_basis) || (c == 2 && page.about_mean[h]);
          scales[key_element(c)] = marked ? half(-static_cast<float>(scale)) : scale;
          zeros[key_element(c)] = zero;
          for (int t = 0; t < group; ++t) {
            const int code = bits == 0 ? 0 : below(1 << bits);
            if (bits > 0) put_key(unit, bits, t, i, code);
            keys[t * d + c] = static_cast<double>(zero) + static_cast<double>(scale) * code;
          }
        }
        unit += Layout::key_unit_bytes(bits);
      }
    }
  }

  void make_values(Page &page, int h, std::uint8_t *bytes) {
    double *values = page.values.data() + h * group * d;
    for (int t = 0; t < group; ++t) {
      for (int c = 0; c < d; ++c) {
        std::uint8_t *step = bytes + Layout::value_codes + t / 16 * Layout::value_step_bytes;
        if constexpr (Layout::ValueBits == 16) {
          const T x(static_cast<float>(normal()));
          reinterpret_cast<T *>(step)[BlockLayout<d>::value(t % 16, c) - BlockLayout<d>::part_elements] =
              x;
          values[t * d + c] = static_cast<double>(x);
        } else {
          const int i = Values == ValueCoding::plain ? c / 32 : 0;
          auto *scale =
              reinterpret_cast<half *>(bytes + Layout::value_scales) + i * group + value_element(t);
          auto *zero = reinterpret_cast<half *>(bytes + Layout::value_zeros(Values)) + i * group +
                       value_element(t);
          if (c % 32 == 0 && (Values == ValueCoding::plain || c == 0)) {
            *scale = random_scale(case_.value_size * 2.0 / (1 << Layout::ValueBits));
            if (Values == ValueCoding::plain) *zero = half(static_cast<float>(normal()));
          }
          const int code = below(1 << Layout::ValueBits);
          put_value(step, c, t % 16, code);
          values[t * d + c] =
              Values == ValueCoding::plain
                  ? static_cast<double>(*zero) + static_cast<double>(*scale) * code
                  : static_cast<double>(*scale) * (code - ((1 << Layout::ValueBits) - 1) / 2.0);
        }
      }
      for (int c = 0; page.about_mean[h] && c < d; ++c) {
        values[t * d + c] += static_cast<double>(models_[h].value_mean[c]);
      }
      if (Layout::ValueBits < 16 && Values == ValueCoding::symmetric) rotate_back(values + t * d);
    }
  }

  static void rotate_back(double *row) {
    constexpr int block = d & -d;
    for (int span = 1; span < block; span *= 2) {
      for (int i = 0; i < d / 2; ++i) {
        const int low = i / span * 2 * span + i % span;
        const double a = row[low], b = row[low + span];
        row[low] = a + b, row[low + span] = a - b;
      }
    }
    for (int i = 0; i < d; ++i) {
      const bool turns = turns_sign(static_cast<unsigned>(i % block), static_cast<unsigned>(block));
      row[i] /= (turns ? -1 : 1) * std::sqrt(double(block));
    }
  }

  struct Sequence {
    std::vector<Page> pages;
    std::vector<double> sink_keys, sink_values, tail_keys, tail_values;  // [heads, tokens, d]
    LayerState state{};
    int tokens;
  };

  void make_sequence(int length, int tokens) {
    Sequence s;
    s.tokens = tokens;
    const int tail = std::max(tokens - case_.packed_tokens, std::min(length, 37 + length % group));
    const int heads = case_.kv_heads;
    const int page_count = (length - tail) / group;
    int before = case_.sinks;
    std::vector<PageEntry> entries;
    for (int p = 0; p < page_count; ++p, ++pages_made_) {
      Page page;
      page.bytes.resize(static_cast<std::size_t>(heads) * Layout::head_bytes(Values), 0);
      page.in_basis.resize(heads);
      page.about_mean.resize(heads);
      page.keys.resize(heads * group * d);
      page.values.resize(heads * group * d);
      for (int h = 0; h < heads; ++h) {
        std::uint8_t *bytes = page.bytes.data() + h * Layout::head_bytes(Values);
        make_keys(page, h, bytes);
        make_values(page, h, bytes);
      }
      page.entry = {.data = keep(page.bytes),
                    .base = (p / 2) * case_.base_step,
                    .first = case_.cut_pages && p % 3 == 1 ? 5 : 0,
                    .tokens = group,
                    .row = p % 2 * group,
                    .before = before,
                    .tile_page = case_.base_step == 0 ? p : p % 2};
      page.entry.tokens =
          case_.cut_pages && p % 3 != 0 ? group - page.entry.first - 9 : group - page.entry.first;
      before += page.entry.tokens;
      entries.push_back(page.entry);
      s.pages.push_back(std::move(page));
    }
    s.state.pages = keep(entries);
    s.state.page_count = page_count;
    s.state.page_capacity = page_count;
    s.state.paged_tokens = before - case_.sinks;
    s.state.sinks = case_.sinks;
    s.state.sink_blocks = (case_.sinks + 15) / 16;
    s.state.tail = tail;
    // A call of several tokens may have some behind the ring.
    const int tail_blocks = (tail + 15) / 16 + 1;
    s.state.tail_blocks = tokens > 1 ? (tail_blocks + 1) / 2 : tail_blocks;
    s.state.tail_first = 16 * (s.state.tail_blocks / 2);
    const auto block = BlockLayout<d>::elements;
    std::vector<T> exact(static_cast<std::size_t>(heads) * (s.state.sink_blocks + tail_blocks) * block,
                         T(0.0f));
    const auto fill = [&](int count, auto slot_of, std::vector<double> &keys,
                          std::vector<double> &values) {
      keys.resize(heads * count * d);
      values.resize(heads * count * d);
      for (int h = 0; h < heads; ++h) {
        for (int t = 0; t < count; ++t) {
          const int slot = slot_of(t);
          T *rows = exact.data() + (static_cast<std::size_t>(slot / 16) * heads + h) * block;
          for (int c = 0; c < d; ++c) {
            const T k(static_cast<float>(normal())), v(static_cast<float>(normal()));
            rows[BlockLayout<d>::key(slot % 16, c)] = k;
            rows[BlockLayout<d>::value(slot % 16, c)] = v;
            keys[(h * count + t) * d + c] = static_cast<double>(k);
            values[(h * count + t) * d + c] = static_cast<double>(v);
          }
        }
      }
    };
    fill(
        case_.sinks, [](int t) { return t; }, s.sink_keys, s.sink_values);
    const int ring = s.state.tail_blocks * 16;
    fill(
        tail,
        [&](int t) {
          return s.state.sink_blocks * 16 + (t < ring ? (s.state.tail_first + t) % ring : t);
        },
        s.tail_keys, s.tail_values);
    s.state.exact = reinterpret_cast<std::uint16_t *>(keep(exact));
    s.state.overflow =
        s.state.exact +
        static_cast<std::size_t>(s.state.sink_blocks + s.state.tail_blocks) * heads * block;
    sequences_.push_back(std::move(s));
  }

  std::vector<double> turned(const std::vector<double> &q, long long base) const {
    std::vector<double> x = q;
    for (int i = 0; i < pairs(); ++i) {
      const double angle = -static_cast<double>(base) * static_cast<double>(frequencies_[i]);
      const int a = case_.interleaved ? 2 * i : i, b = case_.interleaved ? 2 * i + 1 : i + pairs();
      x[a] = q[a] * std::cos(angle) - q[b] * std::sin(angle);
      x[b] = q[a] * std::sin(angle) + q[b] * std::cos(angle);
    }
    return x;
  }

  void add(std::vector<double> &scores, std::vector<const double *> &values, double score,
           const double *value) {
    scores.push_back(score);
    values.push_back(value);
  }

  /// Of a query head, as ALiBi has them.
  static double slope(int head) { return std::exp2(-2.0 - head % 6); }

  /// The output of one query, [d]. slope: of its head, 0 for none.
  std::vector<double> reference(const Sequence &s, const std::vector<double> &q, int h, int limit,
                                double slope) {
    std::vector<double> scores;
    std::vector<const double *> values;
    const auto dot = [](const double *a, const double *b, int n) {
      double sum = 0;
      for (int i = 0; i < n; ++i) sum += a[i] * b[i];
      return sum;
    };
    const auto exact = [&](const std::vector<double> &k, const std::vector<double> &v, int count) {
      for (int t = 0; t < count; ++t) {
        add(scores, values, dot(q.data(), k.data() + (h * count + t) * d, d),
            v.data() + (h * count + t) * d);
      }
    };
    exact(s.sink_keys, s.sink_values, s.state.sinks);
    for (const Page &page : s.pages) {
      const std::vector<double> at = turned(q, page.entry.base);
      std::vector<double> coordinates = at, weights(modes, 0.0);
      if (page.in_basis[h]) {
        for (int i = 0; i < d; ++i)
          coordinates[i] = dot(models_[h].inverse.data() + i * d, at.data(), d);
      }
      if (case_.mean && Layout::KeyBits < 16) {
        for (int m = 0; m < modes; ++m)
          weights[m] = dot(models_[h].projection.data() + m * d, at.data(), d);
      }
      for (int t = page.entry.first; t < page.entry.first + page.entry.tokens; ++t) {
        const double mean =
            dot(mode_rows_.data() + (page.entry.row + t) * 16 * mode_tiles, weights.data(), modes);
        add(scores, values, mean + dot(page.keys.data() + (h * group + t) * d, coordinates.data(), d),
            page.values.data() + (h * group + t) * d);
      }
    }
    exact(s.tail_keys, s.tail_values, s.state.tail);
    scores.resize(limit);
    const int first = case_.window == 0 ? 0 : std::max(0, limit - case_.window);
    for (int t = first; t < limit; ++t) {
      if (case_.soft_cap > 0) scores[t] = case_.soft_cap * std::tanh(scores[t] / case_.soft_cap);
      scores[t] -= slope * (limit - 1 - t);
    }
    const double most = *std::max_element(scores.begin() + first, scores.end());
    std::vector<double> out(d, 0.0);
    double sum = 0;
    for (int t = first; t < limit; ++t) {
      const double p = std::exp(scores[t] - most);
      sum += p;
      for (int c = 0; c < d; ++c) out[c] += p * values[t][c];
    }
    for (double &x : out) x /= sum;
    return out;
  }

  void run() {
    std::vector<LayerState> states;
    std::vector<BatchEntry> batch;
    int rows = 0, most = 0;
    int most_pages = 0;
    for (const Sequence &s : sequences_) {
      states.push_back(s.state);
      most_pages += s.state.page_capacity;
    }
    LayerState *device_states = keep(states);
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      batch.push_back({device_states + i, rows, sequences_[i].tokens, 0});
      rows += sequences_[i].tokens;
      most = std::max(most, sequences_[i].tokens);
    }
    const int heads = case_.query_heads;
    std::vector<half> q(static_cast<std::size_t>(rows * heads * d));
    for (half &x : q) x = half(static_cast<float>(normal(1 / case_.key_size)));
    OnDevice<half> out(std::vector<half>(q.size(), half(1e4f)));
    const int of_a_kv_head = heads / case_.kv_heads;
    const int many = border_rows == 0 ? 0 : std::max(2, (border_rows + of_a_kv_head - 1) / of_a_kv_head);
    const std::size_t bytes =
        attend_workspace_bytes(d, static_cast<int>(batch.size()), heads, case_.kv_heads, most,
                               most_pages, Layout::KeyBits, Layout::ValueBits, Values, many);
    std::vector<std::uint8_t> poison(bytes, 0xff);
    std::fill_n(poison.begin(), counter_bytes, std::uint8_t{0});
    auto *workspace = keep(poison);
    AttendCall<half> call{};
    call.batch = keep(batch);
    call.entries = static_cast<int>(batch.size());
    call.heads_per_kv_head = of_a_kv_head;
    call.kv_heads = case_.kv_heads;
    call.scale = 1 / std::sqrt(static_cast<float>(d));
    call.codings = codings_;
    call.most_pages = most_pages;
    call.many_tokens = many;
    call.turns_in_place = case_.interleaved || 2 * pairs() == d ? 1 : 0;
    if (case_.soft_cap > 0) {
      call.rule.soft_cap = static_cast<float>(case_.soft_cap) * log2_e;
      call.rule.inverse_cap = 1 / call.rule.soft_cap;
    }
    call.rule.window = case_.window;
    if (case_.slopes) {
      std::vector<float> slopes;
      for (int h = 0; h < heads; ++h) slopes.push_back(static_cast<float>(slope(h)) * log2_e);
      call.rule.slopes = keep(slopes);
    }
    call.q = {keep(q), heads * d, d};
    call.out = {out.data(), heads * d, d};
    launch_attend<Layout, T>(call, Values, most, workspace, nullptr);
    check(cudaDeviceSynchronize(), "test");
    const std::vector<half> result = out.read();
    const int shared = heads / case_.kv_heads;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence &s = sequences_[i];
      for (int t = 0; t < s.tokens; ++t) {
        for (int h = 0; h < heads; ++h) {
          const std::size_t at = static_cast<std::size_t>(((batch[i].first_row + t) * heads + h) * d);
          std::vector<double> query(d);
          for (int c = 0; c < d; ++c)
            query[c] = static_cast<double>(q[at + c]) * static_cast<double>(call.scale);
          const auto expected = reference(s, query, h / shared, s.state.length() - s.tokens + t + 1,
                                          case_.slopes ? slope(h) : 0);
          for (int c = 0; c < d; ++c) {
            const double difference = static_cast<double>(result[at + c]) - expected[c];
            difference_ += difference * difference;
            norm_ += expected[c] * expected[c];
          }
        }
      }
    }
  }

  Case case_;
  std::mt19937 random_;
  std::normal_distribution<double> distribution_;
  std::vector<float> frequencies_;
  std::vector<double> mode_rows_;
  std::vector<HeadModel> models_;
  std::vector<Sequence> sequences_;
  CodingTables *codings_ = nullptr;
  std::size_t pages_made_ = 0;
  std::vector<std::shared_ptr<void>> kept_;
  double difference_ = 0, norm_ = 0;
};

// Queries, transforms and weights are float16 to the matrix units, sums are float.
constexpr double tolerance = 3e-3;

template <class Layout, ValueCoding Values = ValueCoding::symmetric, class T = half>
void expect_near(const Case &c) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  EXPECT_LT((World<Layout, Values, T>(c).distance()), tolerance);
}

TEST(AttendKernel, TwoBitsInTheBasisOfATileFrame) {
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = {2000}, .base_step = 256});
}
TEST(AttendKernel, InterleavedPairsAndFarBases) {
  expect_near<PageLayout<128, 128, 2, 2>>(
      {.lengths = {2000}, .interleaved = true, .base_step = -1234567});
}
TEST(AttendKernel, EveryRatioOfQueryHeads) {
  for (int heads : {1, 3, 8, 16}) {
    expect_near<PageLayout<128, 128, 2, 2>>(
        {.query_heads = 2 * heads, .lengths = {900}, .base_step = 256});
  }
}
TEST(AttendKernel, BatchesOfManyLengths) {
  expect_near<PageLayout<128, 128, 2, 2>>(
      {.lengths = {1, 300, 64, 5000, 129, 1000}, .tokens = {1, 1, 1, 1, 1, 1}, .base_step = 256});
}
TEST(AttendKernel, BatchesOfOneLengthAreCutBetweenSequences) {
  const std::vector<int> lengths(8, 2000), tokens(8, 1);
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = lengths, .tokens = tokens, .base_step = 256});
  const std::vector<int> many(80, 150), one(80, 1);
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = many, .tokens = one});
}
TEST(AttendKernel, AllBlocksShareALongSequence) {
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = {40000}, .base_step = 256});
}
TEST(AttendKernel, SeveralTokensSeeEachOtherInOrder) {
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = {700, 500, 260}, .tokens = {65, 3, 130}});
}
TEST(AttendKernel, PagesOfWhichAPartCounts) {
  expect_near<PageLayout<128, 128, 2, 2>>(
      {.lengths = {1500}, .tokens = {7}, .base_step = 256, .cut_pages = true});
}
TEST(AttendKernel, FourBits) {
  expect_near<PageLayout<128, 128, 4, 4>>({.lengths = {1100}, .base_step = 256});
}
TEST(AttendKernel, EightBitsOfChannels) {
  expect_near<PageLayout<128, 128, 8, 8>>({.lengths = {1100}, .basis = false, .mean = false});
}
TEST(AttendKernel, ExactPages) {
  expect_near<PageLayout<128, 128, 16, 16>>({.lengths = {1100, 3}, .tokens = {1, 2}, .base_step = 17});
}
TEST(AttendKernel, PlainCodingInSmallPages) {
  expect_near<PageLayout<128, 32, 2, 2>, ValueCoding::plain>(
      {.lengths = {400}, .basis = false, .mean = false});
}
TEST(AttendKernel, SmallHeads) {
  expect_near<PageLayout<64, 128, 2, 2>>({.lengths = {1000}, .base_step = 256});
  expect_near<PageLayout<64, 64, 3, 3>, ValueCoding::plain>(
      {.lengths = {1000}, .sinks = 0, .basis = false});
  expect_near<PageLayout<64, 128, 4, 4>>(
      {.query_heads = 9, .kv_heads = 3, .lengths = {1000}, .sinks = 20});
}
TEST(AttendKernel, LargeHeads) {
  expect_near<PageLayout<256, 128, 2, 2>>({.lengths = {600}, .base_step = 256});
}
TEST(AttendKernel, KeysAndValuesOfDifferentWidths) {
  expect_near<PageLayout<128, 128, 16, 2>>({.lengths = {600}});
  expect_near<PageLayout<128, 128, 4, 16>>({.lengths = {600}});
}

TEST(AttendKernel, SomeChannelsTurn) {
  for (int pairs : {16, 31}) {
    expect_near<PageLayout<128, 128, 4, 4>>({.lengths = {600}, .base_step = 256, .pairs = pairs});
    expect_near<PageLayout<128, 128, 2, 2>>(
        {.lengths = {600}, .interleaved = true, .base_step = 256, .pairs = pairs});
  }
}

// Many query rows of a sequence: the kernels of attend_rows.cuh. 4 query heads a KV head unless said.

/// They begin at 32 rows here, whatever pages hold.
class AttendRows : public testing::Test {
 protected:
  void SetUp() override { border_rows = 32; }
  void TearDown() override { border_rows = 0; }
};

template <class Layout, ValueCoding Values = ValueCoding::symmetric>
void expect_near_of_many(Case c) {
  for (int tokens : {8, 37, 128}) {
    c.tokens = {tokens};
    SCOPED_TRACE(tokens);
    expect_near<Layout, Values>(c);
  }
}

TEST_F(AttendRows, TwoBitsInTheBasisOfATileFrame) {
  expect_near_of_many<PageLayout<128, 128, 2, 2>>({.lengths = {1500}, .base_step = 256});
}
TEST_F(AttendRows, InterleavedPairsAndFarBases) {
  expect_near<PageLayout<128, 128, 2, 2>>(
      {.lengths = {1100}, .tokens = {19}, .interleaved = true, .base_step = -1234567});
}
TEST_F(AttendRows, EveryRatioOfQueryHeads) {
  for (int heads : {1, 3, 8, 16}) {
    expect_near<PageLayout<128, 128, 2, 2>>(
        {.query_heads = 2 * heads, .lengths = {900}, .tokens = {67}, .base_step = 256});
  }
}
TEST_F(AttendRows, FewTokensBesideMany) {
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = {1, 300, 64, 1000, 129, 900, 400},
                                           .tokens = {1, 130, 64, 1, 129, 9, 2},
                                           .base_step = 256});
}
TEST_F(AttendRows, TokensSeeEachOtherInOrder) {
  expect_near<PageLayout<128, 128, 2, 2>>({.lengths = {700, 500, 300}, .tokens = {65, 500, 200}});
}
TEST_F(AttendRows, PagesThatHoldTokensOfTheCall) {
  expect_near<PageLayout<128, 128, 2, 2>>(
      {.lengths = {1100}, .tokens = {300}, .base_step = 256, .packed_tokens = 260});
}
TEST_F(AttendRows, PagesOfWhichAPartCounts) {
  expect_near_of_many<PageLayout<128, 128, 2, 2>>(
      {.lengths = {1200}, .base_step = 256, .cut_pages = true});
}
TEST_F(AttendRows, FourBits) {
  expect_near_of_many<PageLayout<128, 128, 4, 4>>({.lengths = {1100}, .base_step = 256});
}
TEST_F(AttendRows, EightBitsOfChannels) {
  expect_near_of_many<PageLayout<128, 128, 8, 8>>({.lengths = {700}, .basis = false, .mean = false});
}
TEST_F(AttendRows, ExactPages) {
  expect_near_of_many<PageLayout<128, 128, 16, 16>>({.lengths = {1100}, .base_step = 17});
  expect_near_of_many<PageLayout<64, 128, 16, 16>>({.lengths = {1100}, .base_step = 17});
  expect_near<PageLayout<64, 32, 16, 16>>(
      {.lengths = {500, 99}, .tokens = {65, 12}, .base_step = 17, .cut_pages = true});
}
TEST_F(AttendRows, ExactNumbersOfBfloat16) {
  for (int tokens : {8, 16, 130}) {
    const Case c{.lengths = {900}, .tokens = {tokens}, .base_step = 17};
    expect_near<PageLayout<128, 128, 16, 16>, ValueCoding::symmetric, bfloat16>(c);
    expect_near<PageLayout<128, 128, 2, 2>, ValueCoding::symmetric, bfloat16>(c);
  }
}
TEST_F(AttendRows, PagesTurnedBackByDifferentBases) {
  expect_near<PageLayout<128, 128, 16, 16>>(
      {.lengths = {2000, 700}, .tokens = {70, 33}, .base_step = 5000, .cut_pages = true});
}
TEST_F(AttendRows, PlainCodingInSmallPages) {
  expect_near_of_many<PageLayout<128, 32, 2, 2>, ValueCoding::plain>(
      {.lengths = {400}, .basis = false, .mean = false});
}
TEST_F(AttendRows, SmallHeads) {
  expect_near_of_many<PageLayout<64, 128, 2, 2>>({.lengths = {1000}, .base_step = 256});
  expect_near_of_many<PageLayout<64, 64, 3, 3>, ValueCoding::plain>(
      {.lengths = {700}, .sinks = 0, .basis = false});
  expect_near_of_many<PageLayout<64, 128, 4, 4>>(
      {.query_heads = 9, .kv_heads = 3, .lengths = {700}, .sinks = 20});
  expect_near_of_many<PageLayout<96, 64, 4, 2>>({.lengths = {700}, .base_step = 128});
}
TEST_F(AttendRows, LargeHeads) {
  expect_near_of_many<PageLayout<256, 128, 2, 2>>({.lengths = {600}, .base_step = 256});
}
TEST_F(AttendRows, KeysAndValuesOfDifferentWidths) {
  expect_near_of_many<PageLayout<128, 128, 16, 2>>({.lengths = {600}, .base_step = 256});
  expect_near_of_many<PageLayout<128, 128, 4, 16>>({.lengths = {600}, .base_step = 256});
}
TEST_F(AttendRows, SomeChannelsTurn) {
  for (int pairs : {16, 20, 31}) {
    expect_near<PageLayout<128, 128, 4, 4>>(
        {.lengths = {600}, .tokens = {8}, .base_step = 256, .pairs = pairs});
    expect_near<PageLayout<64, 64, 16, 16>>(
        {.lengths = {600}, .tokens = {20}, .base_step = 256, .pairs = pairs});
  }
}
TEST_F(AttendRows, ScoresThatRulesBend) {
  for (const Case &ruled : {Case{.window = 300}, Case{.window = 70}, Case{.soft_cap = 2},
                            Case{.slopes = true}, Case{.window = 130, .soft_cap = 3, .slopes = true}}) {
    SCOPED_TRACE(testing::Message() << ruled.window << ", " << ruled.soft_cap << ", " << ruled.slopes);
    Case c = ruled;
    c.lengths = {1000, 260};
    c.tokens = {130, 150};
    c.base_step = 256;
    expect_near<PageLayout<128, 128, 2, 2>>(c);
    expect_near<PageLayout<64, 128, 4, 4>>(c);
    expect_near<PageLayout<256, 128, 2, 2>>(c);
    c.cut_pages = true;
    expect_near<PageLayout<128, 128, 16, 16>>(c);
    expect_near<PageLayout<64, 128, 16, 16>>(c);
    expect_near<PageLayout<128, 128, 2, 2>, ValueCoding::symmetric, bfloat16>(c);
  }
}
TEST_F(AttendRows, MoreUnpackedPagesThanHaveRoomAtATime) {
  expect_near<PageLayout<128, 128, 2, 2>>({.query_heads = 128,
                                           .kv_heads = 128,
                                           .lengths = {600, 4500},
                                           .tokens = {40, 33},
                                           .base_step = 256});
  expect_near<PageLayout<128, 128, 4, 16>>(
      {.query_heads = 64, .kv_heads = 64, .lengths = {4500}, .tokens = {33}, .base_step = 256});
}
TEST_F(AttendRows, ScalesThatCouldLeaveTheRangeOfHalves) {
  const Case large{
      .lengths = {700}, .tokens = {8}, .base_step = 256, .key_size = 600, .value_size = 18000};
  expect_near<PageLayout<128, 128, 2, 2>>(large);  // values are met as codes
  expect_near<PageLayout<64, 128, 2, 2>>(large);   // and unpacked
}

}  // namespace
}  // namespace squat::cuda
