"""squat::ModelCache. What calls do, and their errors: include/squat/model/model_cache.hpp and cache/kv_cache.hpp."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Array = Any
"""[tokens, heads, channels] by DLPack, on the CPU, channels contiguous: float32, float16 or bfloat16."""

Batch = Sequence[tuple[int, int, int]]
"""Of each sequence: its handle, its tokens, and the first of its rows, or -1: behind those of the one before."""

class Error(ValueError): ...

class LayerGroup:
    """Layers of one shape and width. Options are those of squat::Options."""

    layers: list[int]
    def __init__(
        self,
        layers: Sequence[int],
        *,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int = 0,
        key_bits: int = 2,
        value_bits: int = 2,
        coding: Literal["plain", "orthogonal", "subspace"] | None = None,
        codes: Literal["scalar", "trellis"] | None = None,
        tail: Literal["exact", "int8"] | None = None,
        allocation: Literal["head", "layer", "model"] | None = None,
        learning: Literal["first_tokens", "per_sequence", "frozen"] | None = None,
        sinks: int = 4,
        residual: int = 64,
        page_tokens: int = 128,
        statistics_tokens: int = 512,
        attention_scale: float = 0,
        attention_window: int = 0,
        rollback_tokens: int = 0,
        keys_have_biases: bool = False,
        soft_cap: float = 0,
        alibi_slopes: Sequence[float] = (),
        sink_logits: Sequence[float] = (),
        inverse_frequencies: Sequence[Sequence[float]] = (),
        rotary_pairs: Literal["halves", "interleaved"] = "halves",
    ) -> None: ...

class ModelCache:
    def __init__(
        self,
        layers: int,
        groups: Sequence[LayerGroup],
        *,
        keys_of: Mapping[int, int] = {},
        layers_without_keys: Sequence[int] = (),
        exact_rows: Literal["float32", "float16", "bfloat16"] = "float16",
        max_page_bytes: int | None = None,
        threads: int = 0,
    ) -> None:
        """threads: that a call runs on; 0: as many as the machine has."""
    def attend(
        self,
        batch: Batch,
        layer: int,
        q: Array,
        k: Array | None = None,
        v: Array | None = None,
        *,
        out: Array,
        lse: Array | None = None,
        causal: bool = True,
        learn: bool = True,
    ) -> None:
        """Appends k and v, if given, and attends; lse: float32 [tokens, query_heads]."""
    def draft(
        self, batch: Batch, layer: int, q: Array, k: Array, v: Array, *, out: Array, parents: Sequence[int], lse: Array | None = None
    ) -> None: ...
    def append(self, batch: Batch, layer: int, k: Array, v: Array, *, q: Array | None = None, learn: bool = True) -> None: ...
    def dequantize(self, sequence: int, layer: int, *, k: Array, v: Array) -> None: ...
    def add_sequence(self) -> int: ...
    def remove_sequence(self, sequence: int) -> None: ...
    def fork(self, parent: int, tokens: int | None = None) -> int: ...
    def reorder(self, sequences: Sequence[int], parents: Sequence[int]) -> None: ...
    def truncate(self, sequence: int, tokens: int) -> None: ...
    def shift(self, sequence: int, first: int, last: int, by: int) -> None: ...
    def length(self, sequence: int, layer: int | None = None) -> int: ...
    def save(self, sequence: int) -> bytes: ...
    def load(self, bytes: bytes) -> int: ...
    def save_codings(self) -> bytes: ...
    def load_codings(self, bytes: bytes) -> None: ...
    def memory(self) -> dict[str, float]: ...
