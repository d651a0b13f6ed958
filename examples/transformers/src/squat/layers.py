"""What a model's layers ask of a cache, read from the model's own code."""

from __future__ import annotations

import inspect
import sys
import warnings
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class LayerShape:
    query_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int  # 0: none
    soft_cap: float  # 0: none
    key_biases: bool = False
    frequencies: tuple[float, ...] = field(default=(), repr=False)
    pairs: str = "halves"


def layers_of(config) -> list[LayerShape]:
    """Of every layer of a decoder. Throws ValueError where there is one that the cache cannot serve."""
    config = config.get_text_config(decoder=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    attentions = {
        module.layer_idx: module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and isinstance(getattr(module, "scaling", None), float)
    }
    layers = config.num_hidden_layers
    if sorted(attentions) != list(range(layers)):
        raise ValueError(
            f"squat.Cache serves models whose {layers} layers all attend to keys of their own; found attention in {sorted(attentions)}"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise ValueError("squat.Cache does not serve models whose layers share keys (num_kv_shared_layers)")
    kinds = getattr(config, "layer_types", None)
    rotary = _Rotary(model, config)
    shapes = []
    for index in range(layers):
        kind = kinds[index] if kinds else None
        if kind not in (None, "full_attention", "sliding_attention"):
            raise ValueError(f"squat.Cache does not serve layers of type {kind}")
        module = attentions[index]
        frequencies, pairs = rotary.of(module, kind)
        head_dim = getattr(module, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shapes.append(
            LayerShape(
                query_heads=config.num_attention_heads,
                kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
                head_dim=head_dim,
                scale=module.scaling,
                window=_window(config, kind),
                soft_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
                key_biases=getattr(getattr(module, "k_proj", None), "bias", None) is not None,
                frequencies=frequencies,
                pairs=pairs,
            )
        )
    return shapes


def _window(config, kind) -> int:
    if kind == "full_attention" or getattr(config, "use_sliding_window", True) is False:
        return 0
    return getattr(config, "sliding_window", None) or 0


class _Rotary:
    """Tables of the model's own rotary modules, made anew where there are numbers."""

    def __init__(self, model, config):
        self.module = None
        for module in model.modules():
            if type(module).__name__.endswith("RotaryEmbedding"):
                self.module = type(module)(config=config)
                break
        self.found = {}

    def of(self, attention, kind):
        if self.module is None:
            return (), "halves"
        if kind not in self.found:
            try:
                self.found[kind] = self._table(attention, kind)
            except Exception as error:  # another model's code: whatever it throws, keys can be coded without
                warnings.warn(f"squat.Cache could not read the rotary embedding, keys are coded less well without: {error}")
                self.found[kind] = (), "halves"
        return self.found[kind]

    def _table(self, attention, kind):
        by_kind = hasattr(self.module, f"{kind}_inv_freq")
        frequencies = getattr(self.module, f"{kind}_inv_freq" if by_kind else "inv_freq").float()
        apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb")
        x = torch.randn(1, 1, 1, attention.head_dim, generator=torch.Generator().manual_seed(1))
        position = torch.tensor([[3]])
        needs_kind = "layer_type" in inspect.signature(self.module.forward).parameters
        cos, sin = self.module(x, position, layer_type=kind) if needs_kind else self.module(x, position)
        turned, _ = apply(x, x, cos, sin)
        for pairs in ("halves", "interleaved"):
            expected = _turn(x[0, 0, 0], 3 * frequencies, pairs)
            scale = turned.norm() / expected.norm()  # some embeddings (YaRN) stretch what they turn
            if torch.allclose(turned[0, 0, 0], scale * expected, atol=1e-4):
                return tuple(frequencies.tolist()), pairs
        raise ValueError(f"{type(self.module).__name__} turns keys in a way of its own")


def _turn(x, angles, pairs):
    count = len(angles)
    first, second = (x[0 : 2 * count : 2], x[1 : 2 * count : 2]) if pairs == "interleaved" else (x[:count], x[count : 2 * count])
    cos, sin = angles.cos(), angles.sin()
    a, b = first * cos - second * sin, first * sin + second * cos
    turned = torch.stack([a, b], -1).flatten() if pairs == "interleaved" else torch.cat([a, b])
    return torch.cat([turned, x[2 * count :]])
