"""The attention "squat" of transformers: `model.set_attn_implementation("squat")`.

Models hand new keys and values to their cache and what that returns to their attention function. Ours gives back the new rows
alone, marked, and the function hands these to the packed cache together with the queries: one call that appends and attends.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "squat"


class NewRows(torch.Tensor):
    """Keys or values that a cache just took. Anything but the attention function that computes with them would see the new tokens
    alone: it is told so."""

    rows: torch.Tensor
    layer: object  # a cache.Layer

    _harmless = {
        torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, torch.Tensor.device.__get__, torch.Tensor.ndim.__get__,
        torch.Tensor.size, torch.Tensor.dim, torch.Tensor.layout.__get__, torch.Tensor.requires_grad.__get__,
        torch.Tensor.is_cuda.__get__,
    }  # fmt: skip

    @classmethod
    def of(cls, rows: torch.Tensor, layer) -> NewRows:
        rows = rows.detach() if rows.requires_grad else rows
        marked = torch.Tensor._make_subclass(cls, rows)
        marked.rows, marked.layer = rows, layer
        return marked

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in cls._harmless:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise TypeError(
            f"squat.Cache keeps keys and values packed: they cannot be used by {getattr(func, '__name__', func)}(). "
            f'This model attends by other ways than the attention interface; set_attn_implementation("{NAME}") must be in force, '
            "and layers must use it."
        )


def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """See transformers' AttentionInterface. query [batch, heads, tokens, head_dim]; returns [batch, tokens, heads, value_dim]."""
    if not isinstance(key, NewRows):
        raise TypeError(f'the attention "{NAME}" needs its cache: model(..., cache=squat.Cache(model.config)), use_cache=True')
    if dropout:
        raise ValueError(f"the attention {NAME!r} has no dropout; it is {dropout}")
    return key.layer.attend(module, query, key.rows, value.rows, attention_mask, scaling, kwargs), None


def mask_of(batch_size, q_length, kv_length, attention_mask=None, **kwargs):
    """See transformers' AttentionMaskInterface: [batch, tokens] or None. Nobody has looked at it, for on a GPU that would wait."""
    return attention_mask if attention_mask is None else attention_mask[:, -kv_length:]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask_of)
