"""squat::ModelCache. What calls do, and their errors: include/squat/model/model_cache.hpp and cache/kv_cache.hpp."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Array = Any
"""[tokens, heads, channels] by DLPack, where the cache is, channels contiguous: float32, float16 or bfloat16."""

has_cuda: bool
"""Whether this build has kernels for CUDA."""

class Error(ValueError): ...

class Batch:
    """The sequences of a call, made once for the calls of many layers; each takes a plain list, too."""

    def __init__(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Of each sequence: its handle, its tokens, and the first of its rows, or -1: behind those of the one before."""

Entries = Batch | Sequence[tuple[int, int, int]]

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
    """On a GPU, calls go into the stream whose handle they are given (torch's `cuda_stream`; 0: the default one). They wait for it
    where those of C++ do: attend() does not for one token a sequence behind others."""

    device: str
    """"cpu" or "cuda:N"."""
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
        device: str = "cpu",
    ) -> None:
        """threads: that a call runs on; 0: as many as the machine has. device: "cpu", or "cuda", the current GPU, which may be named."""
    def attend(
        self,
        batch: Entries,
        layer: int,
        q: Array,
        k: Array | None = None,
        v: Array | None = None,
        *,
        out: Array,
        lse: Array | None = None,
        causal: bool = True,
        learn: bool = True,
        stream: int = 0,
    ) -> None:
        """Appends k and v, if given, and attends; lse: float32 [tokens, query_heads]."""
    def draft(
        self,
        batch: Entries,
        layer: int,
        q: Array,
        k: Array,
        v: Array,
        *,
        out: Array,
        parents: Sequence[int],
        lse: Array | None = None,
        stream: int = 0,
    ) -> None: ...
    def append(self, batch: Entries, layer: int, k: Array, v: Array, *, q: Array | None = None, learn: bool = True, stream: int = 0) -> None: ...
    def dequantize(self, sequence: int, layer: int, *, k: Array, v: Array, stream: int = 0) -> None: ...
    def add_sequence(self) -> int: ...
    def remove_sequence(self, sequence: int) -> None: ...
    def fork(self, parent: int, tokens: int | None = None, *, stream: int = 0) -> int: ...
    def reorder(self, sequences: Sequence[int], parents: Sequence[int], *, stream: int = 0) -> None: ...
    def truncate(self, sequence: int, tokens: int, *, stream: int = 0) -> None: ...
    def shift(self, sequence: int, first: int, last: int, by: int, *, stream: int = 0) -> None: ...
    def length(self, sequence: int, layer: int | None = None) -> int: ...
    def save(self, sequence: int, *, stream: int = 0) -> bytes: ...
    def load(self, bytes: bytes, *, stream: int = 0) -> int: ...
    def save_codings(self, *, stream: int = 0) -> bytes: ...
    def load_codings(self, bytes: bytes, *, stream: int = 0) -> None: ...
    def steps_to_replay(self, batch: Entries) -> int:
        """How many steps of a token a sequence a graph may be replayed for, now, before advance(); 0: the next cannot be captured."""
    def advance(self, batch: Entries, steps: int, *, stream: int = 0) -> None:
        """Counts replays of a captured step. Throws Error, once they are counted, where the graph is outgrown: capture it anew."""
    def check(self, *, stream: int = 0) -> None:
        """Throws Error for what kernels have met in steps on a GPU, and waits for it."""
    def memory(self) -> dict[str, float]: ...
