"""The cache of a model of transformers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import transformers
from torch.utils.dlpack import to_dlpack
from transformers.cache_utils import CacheLayerMixin

from . import attention
from ._native import Batch, Error, LayerGroup, ModelCache
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
    assisted decoding does. options: of squat::Options, see LayerGroup. threads: 0, as many as the machine has. device: None, where the
    model's first queries are: the CPU, or a GPU, for which calls go into the current stream and a step of one token waits for nothing.
    Tensors are of float32, float16 or bfloat16; prompts may be padded on the left. Throws ValueError for models that it cannot serve,
    and squat.Error for options that do not fit each other, or the device.
    """

    def __init__(self, config, bits: int | tuple[int, int] = 2, *, exact_layers: Iterable[int] = (),
                 exact_rows: str | None = None, rollback_tokens: int = 128, threads: int = 0,
                 device: str | torch.device | None = None, **options):  # fmt: skip
        self._shapes = layers_of(config)
        self._bits = (bits, bits) if isinstance(bits, int) else tuple(bits)
        self._exact_layers, self._threads, self._options = frozenset(exact_layers), threads, options
        self._rollback_tokens = rollback_tokens
        self._native: ModelCache | None = None  # once the type of its rows is known
        self._device = None if device is None else torch.device(device)
        self._exact_rows = exact_rows
        self._sequences: list[int] = []
        self._pads: list[int] = []  # rows before a sequence's first token
        self._plan: _Plan | None = None  # of the forward pass
        self._replays = self._replays_left = 0  # of a captured step, that are not counted yet; that may follow
        self._checked: dict[int, tuple] = {}  # what layers were called with, see _check_call()
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
            self._run(self._native.truncate, sequence, max(kept - pads, 0))
        self._pads = [min(pads, kept) for pads in self._pads]
        self._plan = None
        for layer in self.layers:
            layer.tokens = kept

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        parents = beam_idx.tolist()
        self._run(self._native.reorder, self._sequences, [self._sequences[parent] for parent in parents])
        self._pads = [self._pads[parent] for parent in parents]
        self._plan = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        chosen = torch.arange(len(self._sequences))[indices].tolist()
        selected = [self._run(self._native.fork, self._sequences[i]) for i in chosen]
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
        self.count_replays()
        return self._native.memory() if self._native else {}

    def check(self) -> None:
        """Throws squat.Error for keys and values of steps on a GPU that were not finite. Waits for it; on the CPU the step itself threw."""
        if self._native:
            self._run(self._native.check)

    def fork(self) -> Cache:
        """A cache of the same tokens, whose packed pages are shared until one of both leaves them."""
        self.count_replays()
        other = object.__new__(Cache)
        other.__dict__.update(self.__dict__)
        other._sequences = [self._run(self._native.fork, sequence) for sequence in self._sequences]
        other._pads, other._plan = list(self._pads), None
        other.layers = [Layer(other, index) for index in range(len(self.layers))]
        for mine, its in zip(self.layers, other.layers):
            its.__dict__.update(mine.__dict__ | {"cache": other})
        return other

    def save(self, path: str | os.PathLike) -> None:
        """Writes the batch's sequences, packed as they are."""
        if not self._sequences:
            raise ValueError("there is nothing to save: the cache is empty")
        parts = [self._run(self._native.save, sequence) for sequence in self._sequences]
        head = json.dumps({"exact_rows": self._exact_rows, "tokens": self.get_seq_length(), "pads": self._pads,
                           "bytes": [len(part) for part in parts]}).encode()  # fmt: skip
        with open(path, "wb") as file:
            for piece in (_MAGIC, struct.pack("<Q", len(head)), head, *parts):
                file.write(piece)

    @classmethod
    def load(cls, path: str | os.PathLike, config, bits: int | tuple[int, int] = 2, **options) -> Cache:
        """What save() wrote, for a cache of the same model, bits and options, on any device (the CPU unless one is named). Throws
        squat.Error for another file."""
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
        cache._make(head["exact_rows"], cache._device or torch.device("cpu"))
        at = 16 + size
        for part, pad in zip(sizes, pads):
            cache._sequences.append(cache._run(cache._native.load, content[at : at + part]))
            cache._pads.append(pad)
            at += part
            if cache._native.length(cache._sequences[-1]) + pad != tokens:
                raise Error(f"squat: {path} is no saved cache: its sequences have other lengths than its head says")
        for layer in cache.layers:
            layer.tokens = tokens
        return cache

    # ---- captured steps, see captured.py

    @property
    def step_plan(self) -> object | None:
        """The same object as long as the same sequences take steps of one token; None where the last call was no such step."""
        return self._plan if self._plan and self._plan.is_step else None

    def replays_left(self) -> int:
        """How often a captured step of step_plan may be replayed before the cache plans one. Counting may end the plan."""
        if self._replays_left == 0:
            self.count_replays()
            plan = self.step_plan
            self._replays_left = self._native.steps_to_replay(plan.batch) if plan else 0
        return self._replays_left

    def note_replay(self) -> None:
        self._replays, self._replays_left = self._replays + 1, self._replays_left - 1
        for layer in self.layers:
            layer.tokens += 1

    def count_replays(self) -> None:
        """Tells the native cache. Other calls do first."""
        count, self._replays, self._replays_left = self._replays, 0, 0
        if count == 0:
            return
        try:
            self._run(self._native.advance, self._plan.batch, count)
        except Error as error:
            if "outgrown" not in str(error):
                raise
            self._plan = None

    @contextlib.contextmanager
    def nothing_counted(self):
        """For a call that is captured: it has not happened."""
        before, left = [layer.tokens for layer in self.layers], self._replays_left
        try:
            yield
        finally:
            for layer, tokens in zip(self.layers, before):
                layer.tokens = tokens
            self._replays_left = left

    # ---- inside

    def _remove_sequences(self) -> None:
        self._plan, self._replays = None, 0
        for sequence in self._sequences:
            self._native.remove_sequence(sequence)

    def _run(self, call, *args):
        """A call of the native cache, in the current stream of its GPU."""
        self.count_replays()
        if self._device.type == "cpu":
            return call(*args)
        if torch.cuda.current_device() != self._device.index:
            with torch.cuda.device(self._device):
                return self._run(call, *args)
        stream = torch.cuda.current_stream().cuda_stream
        try:
            return call(*args, stream=stream)
        except Error as error:
            if "device memory" not in str(error):
                raise
        torch.cuda.empty_cache()  # torch keeps what its tensors leave; the cache is as it was before the call
        return call(*args, stream=stream)

    def _make(self, exact_rows: str, device: torch.device) -> None:
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
        options = dict(exact_rows=exact_rows, threads=self._threads)
        if device.type == "cpu":
            self._native = ModelCache(len(self._shapes), groups, **options)
        else:
            with torch.cuda.device(device):
                self._native = ModelCache(len(self._shapes), groups, **options, device=device.type)
        self._device, self._exact_rows = torch.device(self._native.device), exact_rows

    def _check_call(self, index, module, scaling, others) -> None:
        """What a model hands to its attention must be what its config said."""
        key = scaling, others.get("softcap"), others.get("sliding_window"), others.get("is_causal"), getattr(module, "is_causal", True)
        if self._checked.get(index) == key:
            return
        shape = self._shapes[index]
        for name, given, expected in (("scaling", scaling, shape.scale), ("softcap", others.get("softcap"), shape.soft_cap),
                                      ("sliding_window", others.get("sliding_window"), shape.window)):  # fmt: skip
            if given is not None and not math.isclose(given, expected, rel_tol=1e-6) and not (name == "sliding_window" and not expected):
                raise ValueError(f"layer {index} attends with {name} {given}; the cache was made for {expected}")
        if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise ValueError(f"layer {index} is not causal, which squat.Cache does not serve")
        self._checked[index] = key

    def _attend(self, index, query, key, value, mask, sink_logits):
        count, heads, tokens, _ = query.shape
        if self._native is None:
            if query.dtype not in _TYPES:
                raise ValueError(f"squat.Cache takes float32, float16 or bfloat16; these are {query.dtype}")
            self._make(self._exact_rows or ("bfloat16" if query.dtype == torch.bfloat16 else "float16"), self._device or query.device)
        if index == 0:
            self._begin(mask, count, tokens)
        shape = count * tokens, heads, value.shape[-1]
        out = query.new_zeros(shape) if self._plan.padded else query.new_empty(shape)
        sums = query.new_zeros(shape[:2], dtype=torch.float32) if sink_logits is not None else None
        self._run(self._attend_rows, index, query, key, value, out, sums)
        if sums is not None:  # one more term in the softmax's sum
            out *= torch.sigmoid(sums - sink_logits.detach().float())[..., None].to(out.dtype)
        return out.view(count, tokens, heads, -1)

    def _attend_rows(self, index, query, key, value, out, sums, **stream) -> None:
        rows = _rows(query), _rows(key), _rows(value)
        self._native.attend(self._plan.batch, index, *rows, out=to_dlpack(out), lse=sums, **stream)

    def _begin(self, mask, count, tokens) -> None:
        """Plans the calls of all layers of a forward pass."""
        pads = self._new_pads(mask, count, tokens)
        if not self._sequences:
            self._sequences, self._pads = [self._native.add_sequence() for _ in range(count)], [0] * count
        if len(self._sequences) != count:
            raise ValueError(f"the cache holds {len(self._sequences)} sequences; these are {count}: reset() empties it")
        self._pads = [before + new for before, new in zip(self._pads, pads)]
        entries = [(sequence, tokens - pad, i * tokens + pad) for i, (sequence, pad) in enumerate(zip(self._sequences, pads))]
        if self._plan is None or self._plan.entries != entries:  # steps of one token have the same
            self._plan = _Plan(entries, Batch(entries), any(pads), all(entry[1] == 1 for entry in entries))

    def _new_pads(self, mask, count, tokens) -> list[int]:
        """Leading rows of each sequence's tokens that are padding."""
        if mask is None:
            return [0] * count
        if mask.dim() != 2:
            raise ValueError("squat.Cache takes attention masks of [batch, tokens]; this model makes one of its own")
        before = self.get_seq_length() - tokens
        if tokens == 1 and mask.device.type != "cpu" and self._sequences and max(self._pads) < before:
            return [0] * count  # behind a token there is no padding; whether the mask says so would be a wait for the GPU
        new = mask[:, -tokens:].bool()
        pads = (new.cumsum(-1) == 0).sum(-1)
        (odd, *pads) = torch.cat([(new.sum(-1) != tokens - pads).any()[None], pads]).tolist()
        if odd:
            raise ValueError("squat.Cache takes padding on the left alone; the attention mask has some elsewhere")
        if any(pad and before > old for pad, old in zip(pads, self._pads)):
            raise ValueError("padding behind tokens: squat.Cache takes it on the left alone")
        return pads


@dataclass(frozen=True)
class _Plan:
    """What the layers of a forward pass hand to the native cache."""

    entries: list[tuple[int, int, int]]
    batch: Batch
    padded: bool
    is_step: bool


def _rows(states: torch.Tensor):
    """[batch, heads, tokens, channels] as [batch * tokens, heads, channels]. As a capsule, for Tensor.__dlpack__ takes ten times as long."""
    rows = states.squeeze(2) if states.shape[2] == 1 else states.transpose(1, 2).flatten(0, 1)
    return to_dlpack(rows.detach() if rows.requires_grad else rows)
