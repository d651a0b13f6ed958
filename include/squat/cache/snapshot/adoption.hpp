#pragma once

// What becomes of the coding in a snapshot where a cache has one too.

#include <cstdint>
#include <string>

#include "squat/cache/snapshot/sections.hpp"
#include "squat/core/error.hpp"

namespace squat::detail {

/// What a snapshot says of a layer's coding before the coding itself, which may be left out.
struct CodingHeader {
  std::uint64_t fingerprint = 0;  ///< of the coding's bytes
  std::uint64_t observed = 0;     ///< tokens it has seen, while it learns
  std::uint32_t ready = 0;        ///< pages can be packed with it
  std::uint32_t present = 0;      ///< the coding follows
};
static_assert(sizeof(CodingHeader) == 24);

/// What a cache has of the layer, for a sequence that begins.
struct OwnCoding {
  bool ready;
  bool untouched;             ///< it has seen nothing
  std::uint64_t fingerprint;  ///< of its bytes
};

enum class Adoption {
  keep,   ///< the cache's coding stays
  adopt,  ///< the snapshot's takes its place
  add,    ///< the snapshot's comes beside it, for the sequence alone
};

/// The one rule. needed: pages of the snapshot are packed with its coding, or it is what is asked for.
/// nothing: it is ready and has learnt nothing. beside: another coding may come beside the cache's.
/// A coding that is ready takes the place of one that is not, for then the cache has packed nothing with
/// that; it comes beside one that is ready too. Statistics that are still gathered take the place of
/// none. Rows without pages go with any coding.
inline Adoption adoption(const CodingHeader &found, const OwnCoding &own, bool needed, bool nothing,
                         bool beside, const std::string &layer) {
  const bool same = found.fingerprint == own.fingerprint && found.ready == (own.ready ? 1u : 0u);
  if (same) return Adoption::keep;
  if (nothing && !needed) return Adoption::keep;
  if (nothing && beside) return Adoption::add;
  const bool replaces = found.ready != 0 ? !own.ready : own.untouched;
  if (replaces && (found.present != 0 || !needed))
    return found.present != 0 ? Adoption::adopt : Adoption::keep;
  if (!needed) return Adoption::keep;
  if (!replaces && beside && found.ready != 0 && found.present != 0) return Adoption::add;
  if (replaces)
    throw Error("squat: snapshot was saved without the coding of layer " + layer +
                ", which the cache does not have");
  throw Error("squat: snapshot.coding of layer " + layer +
              " is another than the cache's, which has learnt from other tokens");
}

}  // namespace squat::detail
