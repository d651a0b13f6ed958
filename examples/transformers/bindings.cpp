// squat._native: squat::ModelCache for Python. Tensors come by DLPack, of NumPy, PyTorch or any other
// library that speaks it, and are where the cache is: on the CPU, or on a GPU. Calls that compute let
// other Python threads run.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "device.hpp"
#include "squat/model.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace nb = nanobind;

namespace {

using namespace squat;

using Rows = nb::ndarray<nb::ndim<3>>;
using ReadRows = nb::ndarray<nb::ro, nb::ndim<3>>;
using Sums = nb::ndarray<float, nb::ndim<2>, nb::c_contig>;

/// The sequences of a call. Calls of many layers take one that was made once.
class Batch {
 public:
  /// (sequence, tokens, first row or -1), see SequenceTokens.
  using Entry = std::tuple<std::uint64_t, std::int64_t, std::int64_t>;

  explicit Batch(const std::vector<Entry> &entries) {
    for (const auto &[sequence, tokens, first_row] : entries) {
      entries_.push_back({{sequence}, tokens});
      if (first_row >= 0) entries_.back().first_row = first_row;
    }
  }

  std::vector<SequenceTokens> entries(bool learn) const {
    std::vector<SequenceTokens> entries = entries_;
    for (SequenceTokens &entry : entries) entry.learn = learn;
    return entries;
  }

 private:
  std::vector<SequenceTokens> entries_;
};

template <class Array>
std::string dtype_of(const Array &rows) {
  const nb::dlpack::dtype type = rows.dtype();
  if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16)
    return "bfloat16";
  if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float))
    return "float" + std::to_string(type.bits);
  return "another type";
}

/// Runs run(S()) for the element type of a tensor.
template <class Array, class Run>
auto with_element(const char *name, const Array &rows, Run &&run) {
  const std::string dtype = dtype_of(rows);
  if (dtype == "float32") return run(float());
  if (dtype == "float16") return run(half());
  if (dtype == "bfloat16") return run(bfloat16());
  throw Error("squat: " + std::string(name) + " has elements of " + dtype +
              "; it must be float32, float16 or bfloat16");
}

/// S const: nothing is written, also where the array would let us.
template <class S, class Array>
TensorView<S> view_of(const char *name, const Array &rows, const squat_kv::Device &device) {
  device.check_holds(name, rows.device_type(), rows.device_id());
  const bool same = with_element(name, rows, [](auto element) {
    return std::is_same_v<decltype(element), std::remove_const_t<S>>;
  });
  if (!same)
    throw Error("squat: " + std::string(name) + " has elements of " + dtype_of(rows) +
                "; those of q (or k) are others");
  if (rows.shape(2) > 1 && rows.stride(2) != 1)
    throw Error("squat: the channels of a head of " + std::string(name) + " must be contiguous");
  return {static_cast<S *>(const_cast<void *>(static_cast<const void *>(rows.data()))),
          static_cast<Index>(rows.shape(0)),
          static_cast<Index>(rows.shape(1)),
          static_cast<Index>(rows.shape(2)),
          static_cast<Index>(rows.stride(0)),
          static_cast<Index>(rows.stride(1))};
}

/// k, v: perhaps none.
template <class S>
AttentionTensors<S> tensors_of(const ReadRows &q, const std::optional<ReadRows> &k,
                               const std::optional<ReadRows> &v, const Rows &out,
                               const std::optional<Sums> &lse, const squat_kv::Device &device) {
  if (k.has_value() != v.has_value()) throw Error("squat: k and v go together");
  AttentionTensors<S> tensors{.q = view_of<const S>("q", q, device),
                              .out = view_of<S>("out", out, device)};
  if (k) tensors.k = view_of<const S>("k", *k, device);
  if (v) tensors.v = view_of<const S>("v", *v, device);
  if (lse) {
    device.check_holds("lse", lse->device_type(), lse->device_id());
    tensors.lse = {lse->data(), static_cast<Index>(lse->shape(0)), static_cast<Index>(lse->shape(1)), 1};
  }
  return tensors;
}

/// What make_group() takes of keyword arguments.
template <class T>
void take(nb::kwargs &arguments, const char *name, T &to) {
  if (!arguments.contains(name)) return;
  nb::object value = arguments[name];
  if (!value.is_none() && !nb::try_cast<T>(value, to))
    throw Error("squat: " + std::string(name) + " is of the wrong type");
  nb::del(arguments[name]);
}

template <class Name>
Name named(const std::string &argument, const std::string &value,
           const std::map<std::string, Name> &names) {
  const auto found = names.find(value);
  if (found != names.end()) return found->second;
  std::string all;
  for (const auto &[name, meaning] : names) all += (all.empty() ? "" : ", ") + name;
  throw Error("squat: " + argument + " is '" + value + "'; it must be one of " + all);
}

template <class Name>
void take_named(nb::kwargs &arguments, const char *name, std::optional<Name> &to,
                const std::map<std::string, Name> &names) {
  std::string value;
  take(arguments, name, value);
  if (!value.empty()) to = named(name, value, names);
}

LayerGroup make_group(std::vector<int> layers, nb::kwargs arguments) {
  LayerGroup group{.layers = std::move(layers)};
  Options &options = group.options;
  take(arguments, "key_bits", group.key_bits);
  take(arguments, "value_bits", group.value_bits);
  take(arguments, "query_heads", options.query_heads);
  take(arguments, "kv_heads", options.kv_heads);
  take(arguments, "head_dim", options.head_dim);
  take(arguments, "value_dim", options.value_dim);
  take_named(
      arguments, "coding", options.coding,
      {{"plain", Coding::plain}, {"orthogonal", Coding::orthogonal}, {"subspace", Coding::subspace}});
  take_named(arguments, "codes", options.codes,
             {{"scalar", Codes::scalar}, {"trellis", Codes::trellis}});
  take_named(arguments, "tail", options.tail,
             {{"exact", TailCoding::exact}, {"int8", TailCoding::int8}});
  take_named(arguments, "allocation", options.allocation,
             {{"head", Allocation::head}, {"layer", Allocation::layer}, {"model", Allocation::model}});
  std::optional<LearningMode> learning;
  take_named(arguments, "learning", learning,
             {{"first_tokens", LearningMode::first_tokens},
              {"per_sequence", LearningMode::per_sequence},
              {"frozen", LearningMode::frozen}});
  if (learning) options.learning = *learning;
  take(arguments, "sinks", options.sinks);
  take(arguments, "residual", options.residual);
  take(arguments, "page_tokens", options.page_tokens);
  take(arguments, "statistics_tokens", options.statistics_tokens);
  take(arguments, "attention_scale", options.attention_scale);
  take(arguments, "attention_window", options.attention_window);
  take(arguments, "rollback_tokens", options.rollback_tokens);
  take(arguments, "soft_cap", options.soft_cap);
  take(arguments, "keys_have_biases", options.keys_have_biases);
  take(arguments, "alibi_slopes", options.alibi_slopes);
  take(arguments, "sink_logits", options.sink_logits);
  std::vector<std::vector<float>> frequencies;
  std::string pairs = "halves";
  take(arguments, "inverse_frequencies", frequencies);
  take(arguments, "rotary_pairs", pairs);
  for (std::vector<float> &of_table : frequencies) {
    options.rotary.push_back(
        {std::move(of_table), named<RotaryPairs>("rotary_pairs", pairs,
                                                 {{"halves", RotaryPairs::halves},
                                                  {"interleaved", RotaryPairs::interleaved}})});
  }
  for (const auto [name, value] : arguments)
    throw Error("squat: there is no option '" + nb::cast<std::string>(name) + "'");
  return group;
}

/// A stream as Python hands it over: a cudaStream_t as a number. Caches of the CPU pay no heed to it.
using Stream = std::uintptr_t;
AnyStream any_of(Stream stream) { return reinterpret_cast<AnyStream>(stream); }

class PyModelCache {
 public:
  PyModelCache(int layers, const std::vector<LayerGroup> &groups, const std::map<int, int> &keys_of,
               const std::vector<int> &layers_without_keys, const std::string &exact_rows,
               std::optional<std::size_t> max_page_bytes, int threads, const std::string &device)
      : device_(device),
        pool_(threads > 0 ? std::make_shared<ThreadPool>(static_cast<unsigned>(threads))
                          : std::make_shared<ThreadPool>()),
        cache_(options_of(layers, groups, keys_of, layers_without_keys, exact_rows, max_page_bytes),
               device_.make_group()) {}
  PyModelCache(const PyModelCache &) = delete;
  PyModelCache &operator=(const PyModelCache &) = delete;

  void attend(const Batch &batch, int layer, const ReadRows &q, const std::optional<ReadRows> &k,
              const std::optional<ReadRows> &v, const Rows &out, const std::optional<Sums> &lse,
              bool causal, bool learn, Stream stream) {
    with_element("q", q, [&]<class S>(S) {
      AttentionTensors<S> tensors = tensors_of<S>(q, k, v, out, lse, device_);
      tensors.causal = causal;
      const auto entries = batch.entries(learn);
      const nb::gil_scoped_release others_run;
      cache_.attend(entries, layer, tensors, any_of(stream));
    });
  }

  void draft(const Batch &batch, int layer, const ReadRows &q, const ReadRows &k, const ReadRows &v,
             const Rows &out, const std::vector<std::int64_t> &parents, const std::optional<Sums> &lse,
             Stream stream) {
    with_element("q", q, [&]<class S>(S) {
      const AttentionTensors<S> tensors = tensors_of<S>(q, k, v, out, lse, device_);
      const std::vector<Index> rows(parents.begin(), parents.end());
      const auto entries = batch.entries(true);
      const nb::gil_scoped_release others_run;
      cache_.draft(entries, layer, tensors, rows, any_of(stream));
    });
  }

  void append(const Batch &batch, int layer, const ReadRows &k, const ReadRows &v,
              const std::optional<ReadRows> &q, bool learn, Stream stream) {
    with_element("k", k, [&]<class S>(S) {
      const auto keys = view_of<const S>("k", k, device_), values = view_of<const S>("v", v, device_);
      const auto entries = batch.entries(learn);
      if (!q) {
        const nb::gil_scoped_release others_run;
        return cache_.append(entries, layer, keys, values, any_of(stream));
      }
      const auto queries = view_of<const S>("q", *q, device_);
      const nb::gil_scoped_release others_run;
      cache_.append(entries, layer, queries, keys, values, any_of(stream));
    });
  }

  void dequantize(std::uint64_t sequence, int layer, const Rows &k, const Rows &v, Stream stream) {
    with_element("k", k, [&]<class S>(S) {
      const auto keys = view_of<S>("k", k, device_), values = view_of<S>("v", v, device_);
      const nb::gil_scoped_release others_run;
      cache_.dequantize(SequenceId{sequence}, layer, keys, values, any_of(stream));
    });
  }

  std::uint64_t add_sequence() { return cache_.add_sequence().value; }
  void remove_sequence(std::uint64_t sequence) { cache_.remove_sequence({sequence}); }
  std::uint64_t fork(std::uint64_t parent, std::optional<std::int64_t> tokens, Stream stream) {
    return cache_.fork({parent}, tokens ? *tokens : cache_.length({parent}), any_of(stream)).value;
  }
  void reorder(const std::vector<std::uint64_t> &sequences, const std::vector<std::uint64_t> &parents,
               Stream stream) {
    std::vector<SequenceId> of_sequences, of_parents;
    for (const std::uint64_t sequence : sequences) of_sequences.push_back({sequence});
    for (const std::uint64_t parent : parents) of_parents.push_back({parent});
    cache_.reorder(of_sequences, of_parents, any_of(stream));
  }
  void truncate(std::uint64_t sequence, std::int64_t tokens, Stream stream) {
    cache_.truncate({sequence}, tokens, any_of(stream));
  }
  void shift(std::uint64_t sequence, std::int64_t first, std::int64_t last, std::int64_t by,
             Stream stream) {
    cache_.shift({sequence}, first, last, by, any_of(stream));
  }
  std::int64_t length(std::uint64_t sequence, std::optional<int> layer) const {
    return layer ? cache_.length({sequence}, *layer) : cache_.length({sequence});
  }

  nb::bytes save(std::uint64_t sequence, Stream stream) {
    std::vector<std::byte> bytes;
    cache_.save(SequenceId{sequence}, bytes, {}, any_of(stream));
    return nb::bytes(bytes.data(), bytes.size());
  }
  std::uint64_t load(const nb::bytes &bytes, Stream stream) {
    return cache_.load(span_of(bytes), {}, any_of(stream)).value;
  }
  nb::bytes save_codings(Stream stream) {
    std::vector<std::byte> bytes;
    cache_.save_codings(bytes, {}, any_of(stream));
    return nb::bytes(bytes.data(), bytes.size());
  }
  void load_codings(const nb::bytes &bytes, Stream stream) {
    cache_.load_codings(span_of(bytes), {}, any_of(stream));
  }
  std::int64_t steps_to_replay(const Batch &batch) const {
    return cache_.steps_to_replay(batch.entries(true));
  }
  void advance(const Batch &batch, std::int64_t steps, Stream stream) {
    cache_.advance(batch.entries(true), steps, any_of(stream));
  }
  void check(Stream stream) const { cache_.check(any_of(stream)); }
  std::string device() const { return device_.name(); }

  std::map<std::string, double> memory() const {
    const MemoryReport report = cache_.memory_report();
    return {{"total_bytes", static_cast<double>(report.total())},
            {"page_bytes", static_cast<double>(report.pages_used)},
            {"exact_bytes", static_cast<double>(report.exact)},
            {"coding_bytes", static_cast<double>(report.statistics + report.bases)},
            {"workspace_bytes", static_cast<double>(report.workspace)},
            {"packed_tokens", static_cast<double>(report.packed_tokens)},
            {"exact_tokens", static_cast<double>(report.exact_tokens)},
            {"shared_pages", static_cast<double>(report.shared_pages)},
            {"packed_bits_per_element", report.packed_bits_per_element},
            {"total_bits_per_element", report.total_bits_per_element}};
  }

 private:
  ModelOptions options_of(int layers, const std::vector<LayerGroup> &groups,
                          const std::map<int, int> &keys_of, const std::vector<int> &layers_without_keys,
                          const std::string &exact_rows,
                          std::optional<std::size_t> max_page_bytes) const {
    ModelOptions options{.layers = layers, .groups = groups};
    for (const auto &[layer, owner] : keys_of) options.shared_layers.push_back({layer, owner});
    options.layers_without_keys = layers_without_keys;
    options.exact_rows = named<ElementType>("exact_rows", exact_rows,
                                            {{"float32", ElementType::float32},
                                             {"float16", ElementType::float16},
                                             {"bfloat16", ElementType::bfloat16}});
    if (max_page_bytes) options.max_page_bytes = *max_page_bytes;
    options.parallel = pool_->parallel();
    return options;
  }

  static std::span<const std::byte> span_of(const nb::bytes &bytes) {
    return {reinterpret_cast<const std::byte *>(bytes.c_str()), bytes.size()};
  }

  squat_kv::Device device_;
  std::shared_ptr<ThreadPool> pool_;  // which outlives the cache's calls
  ModelCache cache_;
};

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "squat::ModelCache, see squat/model/model_cache.hpp for what each call does.";
  nb::exception<Error>(module, "Error", PyExc_ValueError);
  nb::class_<LayerGroup>(module, "LayerGroup", "Layers of one shape and width: squat::Options by name.")
      .def("__init__",
           [](LayerGroup *group, std::vector<int> layers, nb::kwargs options) {
             new (group) LayerGroup(make_group(std::move(layers), options));
           })
      .def_ro("layers", &LayerGroup::layers);
  module.attr("has_cuda") = squat_kv::has_cuda;
  nb::class_<Batch>(module, "Batch", "The sequences of a call, for many calls.")
      .def(nb::init<const std::vector<Batch::Entry> &>(), nb::arg("entries"));
  nb::implicitly_convertible<nb::sequence, Batch>();
  nb::class_<PyModelCache>(module, "ModelCache")
      .def(nb::init<int, const std::vector<LayerGroup> &, const std::map<int, int> &,
                    const std::vector<int> &, const std::string &, std::optional<std::size_t>, int,
                    const std::string &>(),
           nb::arg("layers"), nb::arg("groups"), nb::kw_only(),
           nb::arg("keys_of") = std::map<int, int>(),
           nb::arg("layers_without_keys") = std::vector<int>(), nb::arg("exact_rows") = "float16",
           nb::arg("max_page_bytes") = nb::none(), nb::arg("threads") = 0, nb::arg("device") = "cpu")
      .def_prop_ro("device", &PyModelCache::device)
      .def("attend", &PyModelCache::attend, nb::arg("batch"), nb::arg("layer"), nb::arg("q"),
           nb::arg("k") = nb::none(), nb::arg("v") = nb::none(), nb::kw_only(), nb::arg("out"),
           nb::arg("lse").noconvert() = nb::none(), nb::arg("causal") = true, nb::arg("learn") = true,
           nb::arg("stream") = 0)
      .def("draft", &PyModelCache::draft, nb::arg("batch"), nb::arg("layer"), nb::arg("q"), nb::arg("k"),
           nb::arg("v"), nb::kw_only(), nb::arg("out"), nb::arg("parents"),
           nb::arg("lse").noconvert() = nb::none(), nb::arg("stream") = 0)
      .def("append", &PyModelCache::append, nb::arg("batch"), nb::arg("layer"), nb::arg("k"),
           nb::arg("v"), nb::kw_only(), nb::arg("q") = nb::none(), nb::arg("learn") = true,
           nb::arg("stream") = 0)
      .def("dequantize", &PyModelCache::dequantize, nb::arg("sequence"), nb::arg("layer"), nb::kw_only(),
           nb::arg("k"), nb::arg("v"), nb::arg("stream") = 0)
      .def("add_sequence", &PyModelCache::add_sequence)
      .def("remove_sequence", &PyModelCache::remove_sequence, nb::arg("sequence"))
      .def("fork", &PyModelCache::fork, nb::arg("parent"), nb::arg("tokens") = nb::none(), nb::kw_only(),
           nb::arg("stream") = 0)
      .def("reorder", &PyModelCache::reorder, nb::arg("sequences"), nb::arg("parents"), nb::kw_only(),
           nb::arg("stream") = 0)
      .def("truncate", &PyModelCache::truncate, nb::arg("sequence"), nb::arg("tokens"), nb::kw_only(),
           nb::arg("stream") = 0)
      .def("shift", &PyModelCache::shift, nb::arg("sequence"), nb::arg("first"), nb::arg("last"),
           nb::arg("by"), nb::kw_only(), nb::arg("stream") = 0)
      .def("length", &PyModelCache::length, nb::arg("sequence"), nb::arg("layer") = nb::none())
      .def("save", &PyModelCache::save, nb::arg("sequence"), nb::kw_only(), nb::arg("stream") = 0)
      .def("load", &PyModelCache::load, nb::arg("bytes"), nb::kw_only(), nb::arg("stream") = 0)
      .def("save_codings", &PyModelCache::save_codings, nb::kw_only(), nb::arg("stream") = 0)
      .def("load_codings", &PyModelCache::load_codings, nb::arg("bytes"), nb::kw_only(),
           nb::arg("stream") = 0)
      .def("steps_to_replay", &PyModelCache::steps_to_replay, nb::arg("batch"))
      .def("advance", &PyModelCache::advance, nb::arg("batch"), nb::arg("steps"), nb::kw_only(),
           nb::arg("stream") = 0)
      .def("check", &PyModelCache::check, nb::kw_only(), nb::arg("stream") = 0)
      .def("memory", &PyModelCache::memory);
}
