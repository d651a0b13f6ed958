"""The cache of a model of transformers."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable

import torch
import transformers
from transformers.cache_utils import CacheLayerMixin

from . import attention
from ._native import Error, LayerGroup, ModelCache
from .layers import LayerShape, layers_of

_TYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_MAGIC = b"squatkv1"


class Layer(CacheLayerMixin):
    """One layer of a Cache; the rows are in the cache's ModelCache."""

    is_sliding = False
    is_croppable = True

    def __init__(self, cache: Cache, index: int):
        super().__init__()
        self.cache, self.index, self.tokens = cache, index, 0

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.tokens += key_states.shape[-2]
        return attention.NewRows.of(key_states, self), attention.NewRows.of(value_states, self)

    def attend(self, module, query, key, value, mask, scaling, others):
        self.cache._check_call(self.index, module, scaling, others)
        return self.cache._attend(self.index, query, key, value, mask, others.get("s_aux"))

    def get_seq_length(self):
        return self.tokens

    def get_mask_sizes(self, query_length):
        return self.tokens + query_length, 0

    def get_max_length(self):
        return -1

    def reorder_cache(self, beam_idx):
        raise NotImplementedError("beams are reordered in all layers at once: Cache.reorder_cache()")


class Cache(transformers.Cache):
    """Keys and values of a model in a few bits.

    >>> cache = squat.Cache(model.config, bits=2)
    >>> model.set_attn_implementation("squat")
    >>> model.generate(**inputs, cache=cache)

    config: the model's. bits: of keys and values, 2, 3, 4, 8 or 16 (exact), or a pair. exact_layers: those that are kept in
    16 bits. exact_rows: what the newest tokens are kept as; None: bfloat16 where the model computes in it, else float16, which
    keeps what float32 keys say in half the memory. rollback_tokens: that crop() may take back where layers have windows, as
    assisted decoding does. options: of squat::Options, see LayerGroup. threads: 0, as many as the machine has. Tensors are on the CPU, of
    float32, float16 or bfloat16; prompts may be padded on the left. Throws ValueError for models that it cannot serve, and
    squat.Error for options that do not fit each other.
    """

    def __init__(self, config, bits: int | tuple[int, int] = 2, *, exact_layers: Iterable[int] = (),
                 exact_rows: str | None = None, rollback_tokens: int = 128, threads: int = 0, **options):  # fmt: skip
        self._shapes = layers_of(config)
        self._bits = (bits, bits) if isinstance(bits, int) else tuple(bits)
        self._exact_layers, self._threads, self._options = frozenset(exact_layers), threads, options
        self._rollback_tokens = rollback_tokens
        self._native: ModelCache | None = None  # once the type of its rows is known
        self._exact_rows = exact_rows
        self._sequences: list[int] = []
        self._pads: list[int] = []  # rows before a sequence's first token
        super().__init__(layers=[Layer(self, index) for index in range(len(self._shapes))])

    # ---- what transformers asks for

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].tokens

    @property
    def is_croppable(self) -> bool:
        return self._rollback_tokens > 0 or not any(shape.window for shape in self._shapes)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove is {tokens_to_remove}; it must be 0 or less")
        kept = self.get_seq_length() + tokens_to_remove
        for sequence, pads in zip(self._sequences, self._pads):
            self._native.truncate(sequence, max(kept - pads, 0))
        for layer in self.layers:
            layer.tokens = kept

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        parents = beam_idx.tolist()
        self._native.reorder(self._sequences, [self._sequences[parent] for parent in parents])
        self._pads = [self._pads[parent] for parent in parents]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        chosen = torch.arange(len(self._sequences))[indices].tolist()
        selected = [self._native.fork(self._sequences[i]) for i in chosen]
        self._remove_sequences()
        self._sequences, self._pads = selected, [self._pads[i] for i in chosen]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self._sequences)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Empties it. What it has learnt of the model's keys stays."""
        self._remove_sequences()
        self._sequences, self._pads = [], []
        for layer in self.layers:
            layer.tokens = 0

    def __del__(self):
        if getattr(self, "_native", None) is not None:
            self._remove_sequences()

    # ---- ours

    def memory(self) -> dict[str, float]:
        """Bytes, and bits an element, of all that is held in this cache and its forks."""
        return self._native.memory() if self._native else {}

    def fork(self) -> Cache:
        """A cache of the same tokens, whose packed pages are shared until one of both leaves them."""
        other = object.__new__(Cache)
        other.__dict__.update(self.__dict__)
        other._sequences = [self._native.fork(sequence) for sequence in self._sequences]
        other._pads = list(self._pads)
        other.layers = [Layer(other, index) for index in range(len(self.layers))]
        for mine, its in zip(self.layers, other.layers):
            its.__dict__.update(mine.__dict__ | {"cache": other})
        return other

    def save(self, path: str | os.PathLike) -> None:
        """Writes the batch's sequences, packed as they are."""
        if not self._sequences:
            raise ValueError("there is nothing to save: the cache is empty")
        parts = [self._native.save(sequence) for sequence in self._sequences]
        head = json.dumps({"exact_rows": self._exact_rows, "tokens": self.get_seq_length(), "pads": self._pads,
                           "bytes": [len(part) for part in parts]}).encode()  # fmt: skip
        with open(path, "wb") as file:
            for piece in (_MAGIC, struct.pack("<Q", len(head)), head, *parts):
                file.write(piece)

    @classmethod
    def load(cls, path: str | os.PathLike, config, bits: int | tuple[int, int] = 2, **options) -> Cache:
        """What save() wrote, for a cache of the same model, bits and options. Throws squat.Error for another file."""
        cache = cls(config, bits, **options)
        with open(path, "rb") as file:
            content = file.read()
        try:
            if content[:8] != _MAGIC:
                raise ValueError("it does not begin as one")
            (size,) = struct.unpack_from("<Q", content, 8)
            head = json.loads(content[16 : 16 + size])
            sizes, pads, tokens = head["bytes"], head["pads"], head["tokens"]
            if head["exact_rows"] not in _TYPES.values() or not all(isinstance(n, int) and n >= 0 for n in [tokens, *sizes, *pads]):
                raise ValueError("its head is damaged")
            if len(sizes) != len(pads) or 16 + size + sum(sizes) != len(content):
                raise ValueError("its parts do not add up")
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise Error(f"squat: {path} is no saved cache: {error}") from None
        cache._make(head["exact_rows"])
        at = 16 + size
        for part, pad in zip(sizes, pads):
            cache._sequences.append(cache._native.load(content[at : at + part]))
            cache._pads.append(pad)
            at += part
            if cache._native.length(cache._sequences[-1]) + pad != tokens:
                raise Error(f"squat: {path} is no saved cache: its sequences have other lengths than its head says")
        for layer in cache.layers:
            layer.tokens = tokens
        return cache

    # ---- inside

    def _remove_sequences(self) -> None:
        for sequence in self._sequences:
            self._native.remove_sequence(sequence)

    def _make(self, exact_rows: str) -> None:
        kinds: dict[tuple[LayerShape, bool], list[int]] = {}
        for index, shape in enumerate(self._shapes):
            kinds.setdefault((shape, index in self._exact_layers), []).append(index)
        groups = []
        for (shape, exact), indices in kinds.items():
            key_bits, value_bits = (16, 16) if exact else self._bits
            of_shape = dict(
                query_heads=shape.query_heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, attention_scale=shape.scale,
                attention_window=shape.window, rollback_tokens=self._rollback_tokens, soft_cap=shape.soft_cap, rotary_pairs=shape.pairs,
                keys_have_biases=shape.key_biases,
                inverse_frequencies=[list(shape.frequencies)] if shape.frequencies else [],
            )  # fmt: skip
            options = {} if exact else self._options
            groups.append(LayerGroup(indices, key_bits=key_bits, value_bits=value_bits, **of_shape, **options))
        self._native = ModelCache(len(self._shapes), groups, exact_rows=exact_rows, threads=self._threads)
        self._exact_rows = exact_rows

    def _check_call(self, index, module, scaling, others) -> None:
        """What a model hands to its attention must be what its config said."""
        shape = self._shapes[index]
        for name, given, expected in (("scaling", scaling, shape.scale), ("softcap", others.get("softcap"), shape.soft_cap),
                                      ("sliding_window", others.get("sliding_window"), shape.window)):  # fmt: skip
            if given is not None and not math.isclose(given, expected, rel_tol=1e-6) and not (name == "sliding_window" and not expected):
                raise ValueError(f"layer {index} attends with {name} {given}; the cache was made for {expected}")
        if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise ValueError(f"layer {index} is not causal, which squat.Cache does not serve")

    def _attend(self, index, query, key, value, mask, sink_logits):
        count, heads, tokens, _ = query.shape
        if query.device.type != "cpu":
            raise ValueError(f"squat.Cache takes tensors on the CPU; these are on {query.device}")
        if self._native is None:
            if query.dtype not in _TYPES:
                raise ValueError(f"squat.Cache takes float32, float16 or bfloat16; these are {query.dtype}")
            self._make(self._exact_rows or ("bfloat16" if query.dtype == torch.bfloat16 else "float16"))
        pads = self._new_pads(mask, count, tokens)
        if not self._sequences:
            self._sequences, self._pads = [self._native.add_sequence() for _ in range(count)], [0] * count
        if len(self._sequences) != count:
            raise ValueError(f"the cache holds {len(self._sequences)} sequences; these are {count}: reset() empties it")
        if index == 0:
            self._pads = [before + new for before, new in zip(self._pads, pads)]
        batch = [(sequence, tokens - pad, i * tokens + pad) for i, (sequence, pad) in enumerate(zip(self._sequences, pads))]
        out = query.new_zeros(count * tokens, heads, value.shape[-1])
        sums = torch.zeros(count * tokens, heads) if sink_logits is not None else None
        self._native.attend(batch, index, _rows(query), _rows(key), _rows(value), out=out, lse=sums)
        if sums is not None:  # one more term in the softmax's sum
            out *= torch.sigmoid(sums - sink_logits.detach().float())[..., None].to(out.dtype)
        return out.view(count, tokens, heads, -1)

    def _new_pads(self, mask, count, tokens) -> list[int]:
        """Leading rows of each sequence's tokens that are padding."""
        if mask is None:
            return [0] * count
        if mask.dim() != 2:
            raise ValueError("squat.Cache takes attention masks of [batch, tokens]; this model makes one of its own")
        new = mask[:, -tokens:].bool()
        pads = (new.cumsum(-1) == 0).sum(-1)
        if not torch.equal(new.sum(-1), tokens - pads):
            raise ValueError("squat.Cache takes padding on the left alone; the attention mask has some elsewhere")
        pads = pads.tolist()
        if any(pad and tokens_before for pad, tokens_before in zip(pads, self._real_tokens(count))):
            raise ValueError("padding behind tokens: squat.Cache takes it on the left alone")
        return pads

    def _real_tokens(self, count) -> list[int]:
        return [self._native.length(sequence) for sequence in self._sequences] or [0] * count


def _rows(states: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, channels] as [batch * tokens, heads, channels]."""
    return states.detach().transpose(1, 2).flatten(0, 1)
