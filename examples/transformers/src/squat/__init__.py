"""Quantized KV caches.

`Cache` is one for models of transformers, there where that is installed, and registers the attention "squat"; `ModelCache` is
squat::ModelCache itself, for arrays of NumPy, PyTorch or any other library that speaks DLPack.
"""

import importlib.util

from ._native import Batch, Error, LayerGroup, ModelCache

__all__ = ["Batch", "Error", "LayerGroup", "ModelCache"]

if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
    from .cache import Cache
    from .captured import captured_steps

    __all__ += ["Cache", "captured_steps"]
