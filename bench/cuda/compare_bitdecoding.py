#!/usr/bin/env python3
"""Sets squat_cuda_bench beside BitDecoding (github.com/DD-DuDa/BitDecoding, MIT).

usage: squat_cuda_bench --benchmark_filter='copy_bandwidth|decode/' --benchmark_format=json > decode.json
       python3 bench/cuda/compare_bitdecoding.py decode.json --bitdecoding CHECKOUT --cutlass INCLUDE_FOLDER

Builds the checkout's extension for this GPU with PyTorch (two minutes on 16 cores; CUTLASS's headers are in its
submodule, or in the wheel nvidia-cutlass), and times its decode as the benchmark times squat: CUDA events around
one call, the L2 cache cold, the median of many. Keys in groups of 128 tokens a channel, 4 and 2 bits, over
contiguous caches of head_dim 128. Each result is compared with attention over what was packed: the column says how
far it is off, as a share of the output's norm. Prints Markdown.
"""

import argparse
import math
import os
import sys

import compare_torch

GROUP = 128


def build(checkout, cutlass):
    """The extension's module."""
    import torch
    from torch.utils import cpp_extension

    major, minor = torch.cuda.get_device_capability()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    source = os.path.join(checkout, "csrc", "bit_decode")
    generated = os.path.join(source, "src", "genfile")
    names = [os.path.join(generated, name) for name in sorted(os.listdir(generated)) if name.endswith(".cu")]
    return cpp_extension.load(
        name="bit_decode_cuda",
        sources=[os.path.join(source, "decode_api.cpp"), *names],
        extra_include_paths=[source, os.path.join(source, "src"), cutlass],
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=[
            "-O3",
            "-std=c++17",
            "-U__CUDA_NO_HALF_OPERATORS__",
            "-U__CUDA_NO_HALF_CONVERSIONS__",
            "-U__CUDA_NO_HALF2_OPERATORS__",
            "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
            "--expt-relaxed-constexpr",
            "--expt-extended-lambda",
            "--use_fast_math",
        ],
    )


def reference(q, k, v):
    """Attention of one token over [sequences, tokens, kv_heads, head_dim], in float32, a sequence at a time."""
    import torch

    outputs = []
    for one, keys, values in zip(q, k, v):
        shared = q.shape[2] // k.shape[2]
        scores = torch.einsum("hgd,thd->hgt", one[0].float().view(k.shape[2], shared, -1), keys.float())
        weights = torch.softmax(scores / math.sqrt(q.shape[3]), dim=-1)
        outputs.append(torch.einsum("hgt,thd->hgd", weights, values.float()).flatten(0, 1))
    return torch.stack(outputs).unsqueeze(1)


def time_bits(module, stopwatch, shape, bits):
    """{"us", "off"} of one decode step."""
    import torch

    query_heads, kv_heads, head_dim, sequences, tokens, _ = shape
    half = lambda *extents: torch.randn(*extents, dtype=torch.float16, device="cuda")
    q = half(sequences, 1, query_heads, head_dim)
    k, v = half(sequences, tokens, kv_heads, head_dim), half(sequences, tokens, kv_heads, head_dim)
    packed = 16 // bits
    codes = lambda *extents: torch.zeros(*extents, dtype=torch.uint16, device="cuda")
    scales = lambda *extents: torch.zeros(*extents, dtype=torch.float32, device="cuda")
    cache = (
        codes(sequences, tokens // packed, kv_heads, head_dim),
        scales(sequences, tokens // GROUP, kv_heads, head_dim),
        codes(sequences, tokens, kv_heads, head_dim // packed),
        scales(sequences, head_dim // GROUP, kv_heads, tokens),
    )
    begins = torch.arange(0, (sequences + 1) * tokens, tokens, dtype=torch.int32, device="cuda")
    flat = lambda x: x.reshape(sequences * tokens, kv_heads, head_dim)
    getattr(module, f"kvcache_pack_i{bits}")(
        flat(k), cache[0], cache[1], flat(v), cache[2], cache[3], None, begins, tokens, "k-channel", GROUP
    )
    # Not causal, no window, no soft-cap, interleaved, and as many splits as it likes.
    decode = getattr(module, f"fwd_kvcache_i{bits}")
    call = lambda: decode(
        q, *cache, None, 1 / math.sqrt(head_dim), "k-channel", GROUP, False, -1, -1, 0.0, True, 0
    )
    output = call().float()
    expected = reference(q, k, v)
    off = ((output.view_as(expected) - expected).norm() / expected.norm()).item()
    return {"us": stopwatch.median(call), "off": off}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", help="what squat_cuda_bench wrote")
    parser.add_argument("--bitdecoding", required=True, help="folder of its checkout")
    parser.add_argument("--cutlass", help="folder of CUTLASS's headers (default: the checkout's libs/cutlass/include)")
    parser.add_argument("--repetitions", type=int, default=50)
    arguments = parser.parse_args()
    import torch

    context, _, steps = compare_torch.read(arguments.json)
    cutlass = arguments.cutlass or os.path.join(arguments.bitdecoding, "libs", "cutlass", "include")
    module = build(arguments.bitdecoding, cutlass)
    stopwatch = compare_torch.Stopwatch(torch, arguments.repetitions)
    codings = list(dict.fromkeys(coding for runs in steps.values() for coding in runs))
    heads = ["heads/KV heads/d, sequences x tokens", "BitDecoding 4 bits", "BitDecoding 2 bits"] + codings
    print(f"{context.get('device', torch.cuda.get_device_name())}, PyTorch {torch.__version__}\n")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for shape, runs in steps.items():
        if shape[-1] != 1:  # query tokens
            continue
        if shape[2] != GROUP:
            print(f"{compare_torch.label(shape)}: BitDecoding takes head_dim 128", file=sys.stderr)
            continue
        cells = [compare_torch.label(shape)]
        for bits in (4, 2):
            found = time_bits(module, stopwatch, shape, bits)
            cells.append(f"{found['us']:,.1f} us, {found['off']:.0%} off")
            torch.cuda.empty_cache()
        cells += [f"{compare_torch.microseconds(runs[c]):,.1f} us" if c in runs else "" for c in codings]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
