#pragma once

// A page of the CPU as a snapshot keeps it (cache/snapshot.hpp), and back. Codes have the same bytes in
// both: what differs is where they begin, and the bytes that nothing is kept in.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "squat/cache/snapshot/check_numbers.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/layer_coding.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The pages of a layer. HeadCodings: gives the HeadCoding of a head.
template <class T, class HeadCodings>
class PageRecords {
 public:
  /// page_bytes: of a page of the layer.
  PageRecords(const PageLayout &layout, std::size_t page_bytes, const LayerCoding &coding,
              HeadCodings head_coding)
      : layout_(layout),
        coding_(coding),
        head_coding_(head_coding),
        code_bytes_(page_bytes - layout.codes_begin()) {}

  static std::size_t bytes(const PageLayout &layout, std::size_t page_bytes) {
    return static_cast<std::size_t>(layout.kv_heads) * layout.parameter_bytes() + page_bytes -
           layout.codes_begin();
  }

  void write(std::byte *page, std::byte *to) const {
    const std::size_t parameters = layout_.parameter_bytes();
    std::byte *codes = to + static_cast<std::size_t>(layout_.kv_heads) * parameters;
    std::memset(codes, 0, code_bytes_);
    for (Index head = 0; head < layout_.kv_heads; ++head, to += parameters) {
      std::memcpy(to, layout_.parameters(page, head), parameters);
      for_each_part(page, head, [&](std::byte *part, std::size_t size) {
        std::memcpy(codes + (part - page) - layout_.codes_begin(), part, size);
      });
    }
  }

  /// Throws Error for what is no page of the coding.
  void read(const std::byte *from, std::byte *page) const {
    const std::size_t parameters = layout_.parameter_bytes();
    const std::byte *codes = from + static_cast<std::size_t>(layout_.kv_heads) * parameters;
    std::size_t end = 0;  // of the codes so far, which follow each other
    const auto require_nothing_until = [&](std::size_t begin) {
      require(begin >= end && detail::all_zero(codes + end, begin - end), "bytes that are no codes");
    };
    for (Index head = 0; head < layout_.kv_heads; ++head, from += parameters) {
      require(detail::magnitudes_fit(from, parameters / sizeof(half), 0x7bff),
              "a scale or zero is not finite");
      std::memcpy(layout_.parameters(page, head), from, parameters);
      check_space(page, head);
      for_each_part(page, head, [&](std::byte *part, std::size_t size) {
        const std::size_t begin = static_cast<std::size_t>(part - page) - layout_.codes_begin();
        require_nothing_until(begin);
        end = begin + size;
        std::memcpy(part, codes + begin, size);
        check_exact(part, size, part == head_coding_(head).codes(page, space(page, head)).keys);
      });
    }
    require_nothing_until(code_bytes_);
  }

 private:
  static void require(bool holds, const char *what) {
    if (!holds) throw Error(std::string("squat: snapshot.pages are impossible: ") + what);
  }

  KeySpace space(std::byte *page, Index head) const { return layout_.key_space(page, head); }

  /// What the signs of scales say must be what the coding knows.
  void check_space(std::byte *page, Index head) const {
    if (layout_.key_bits == 16) return;
    const bool in_basis = space(page, head) == KeySpace::basis;
    require(!in_basis || coding_.quantizer(head).basis() != nullptr,
            "keys in a basis that is not there");
    require(
        layout_.key_codes(page, head) == Codes::scalar || (in_basis && layout_.codes == Codes::trellis),
        "trellis codes that were not asked for");
    require(!layout_.values_about_mean(page, head) || coding_.value_mean(head) != nullptr,
            "values about a mean that is not there");
    if (coding_.shares() == nullptr) return;
    require(space(page, 0) == space(page, head), "heads of a page differ in their space");
    require(in_basis || coding_.shares()->plain_fits(), "plain keys that do not fit");
  }

  void check_exact(const std::byte *part, std::size_t size, bool of_keys) const {
    if ((of_keys ? layout_.key_bits : layout_.value_bits) < 16) return;
    require(detail::elements_fit<Exact16<T>>(part, size / sizeof(half)), "an element is not finite");
  }

  /// Calls visit(bytes, size) for the codes of a head's keys and for those of its values.
  template <class Visit>
  void for_each_part(std::byte *page, Index head, Visit &&visit) const {
    const HeadCodes codes = head_coding_(head).codes(page, space(page, head));
    visit(codes.keys, layout_.key_bytes(*codes.allocation));
    visit(codes.values, layout_.value_bytes(codes.value_bits));
  }

  const PageLayout &layout_;
  const LayerCoding &coding_;
  HeadCodings head_coding_;
  std::size_t code_bytes_;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
