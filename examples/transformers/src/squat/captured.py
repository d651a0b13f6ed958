"""Decode steps of a whole model as a CUDA graph: a step costs the host one launch."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .cache import Cache


class captured_steps:
    """Within it, decode steps of a model over a Cache on a GPU are captured once for a batch, and replayed:

    >>> with squat.captured_steps(model):
    ...     model.generate(**inputs, cache=cache)

    A step is a call of one token a sequence by keyword arguments, without gradients. The first two of a batch run as they are, and so
    do those that the cache has to plan: while it learns, behind reorder_cache() or crop(), where memory is short. The next is captured,
    and steps like it are replays, whose results are copies. The model's code must do the same in every step, on the GPU alone (mixtures of
    experts do by set_experts_implementation("batched_mm")); where it does not, the capture raises what torch says of it. All else runs as
    it is: prompts, other caches, the CPU. For one thread at a time.
    """

    def __init__(self, model: torch.nn.Module):
        self._model, self._forward = model, model.forward
        self._steps: _Steps | None = None

    def __enter__(self) -> captured_steps:
        @functools.wraps(self._forward)
        def forward(*args, **kwargs):
            call = None if args else _Call.of(kwargs)
            if call is None:
                self._leave()
                return self._forward(*args, **kwargs)
            if self._steps is None or not call.is_like(self._steps.first):
                self._leave()
                self._steps = _Steps(self._forward, call)
            return self._steps.take(call)

        self._model.forward = forward
        return self

    def __exit__(self, *_) -> None:
        del self._model.forward
        self._leave()

    def _leave(self) -> None:
        if self._steps is not None:
            self._steps.first.cache.count_replays()
        self._steps = None


@dataclass
class _Call:
    """The arguments of a step."""

    cache: Cache
    tensors: dict[str, torch.Tensor]
    others: dict[str, object]
    mask: torch.Tensor | None

    @classmethod
    def of(cls, arguments: dict) -> _Call | None:
        """None where they are not a step's."""
        caches = [value for value in arguments.values() if isinstance(value, Cache)]
        tokens = next((arguments[name] for name in ("input_ids", "inputs_embeds") if arguments.get(name) is not None), None)
        if len(caches) != 1 or tokens is None or not tokens.is_cuda or tokens.shape[1] != 1:
            return None
        if torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing():
            return None
        others = dict(arguments)
        # Behind a token nothing is padding, so that the cache does not ask the mask, whose shape is another in every step.
        mask = others.pop("attention_mask", None)
        tensors = {name: others.pop(name) for name, value in arguments.items() if isinstance(value, torch.Tensor) and name in others}
        simple = all(value is None or isinstance(value, (bool, int, float, str, Cache)) for value in others.values())
        return cls(caches[0], tensors, others, mask) if simple and (mask is None or mask.dim() == 2) else None

    def is_like(self, other: _Call) -> bool:
        shapes, of_other = ({name: (x.shape, x.dtype, x.device) for name, x in call.tensors.items()} for call in (self, other))
        return self.cache is other.cache and self.others == other.others and shapes == of_other


class _Steps:
    """Steps that are alike. A step is captured once the same of the same sequences has run."""

    def __init__(self, forward, first: _Call):
        self.forward, self.first = forward, first
        self.plan = None  # of the step before
        self.has_stepped = False  # by kernels alone, as a captured step does
        self.graph = self.inputs = self.result = None

    def take(self, call: _Call):
        cache = call.cache
        left = cache.replays_left()  # which may show that the graph is outgrown
        if self.plan is None or cache.step_plan is not self.plan:
            self.graph = self.inputs = self.result = left = None
            self.has_stepped = False
        if not left or (self.graph is None and not self.has_stepped):
            result = self.forward(**call.tensors, **call.others, attention_mask=call.mask)
            self.plan, self.has_stepped = cache.step_plan, bool(left)
            return result
        if self.graph is None:
            self._capture(call)
        for name, value in call.tensors.items():
            self.inputs[name].copy_(value)
        if "position_ids" not in call.tensors:
            self.inputs["position_ids"].fill_(cache.get_seq_length())
        self.graph.replay()
        cache.note_replay()
        return _copy(self.result)

    def _capture(self, call: _Call) -> None:
        self.inputs = {name: value.clone() for name, value in call.tensors.items()}
        if "position_ids" not in self.inputs:  # which the model would take from the length that the cache has now
            (some, *_) = self.inputs.values()
            self.inputs["position_ids"] = torch.zeros(some.shape[0], 1, dtype=torch.long, device=some.device)
        others = {name: value for name, value in call.others.items() if name not in self.inputs}
        graph = torch.cuda.CUDAGraph()
        with call.cache.nothing_counted(), torch.cuda.graph(graph):
            self.result = self.forward(**self.inputs, **others, attention_mask=None)
        self.graph = graph


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _copy(part) for name, part in value.items()})
    return tuple(map(_copy, value)) if isinstance(value, tuple) else value
