#!/usr/bin/env python3
"""Sets squat_cuda_bench beside PyTorch's scaled_dot_product_attention and FlashInfer.

usage: squat_cuda_bench --benchmark_filter='copy_bandwidth|(decode|chunk[0-9]+)/' --benchmark_format=json > decode.json
       python3 bench/cuda/compare_torch.py decode.json --others others.json --plot decode.svg

Both are timed as the benchmark times squat: CUDA events around one call, a buffer larger than the L2
cache read before each, the median of many. float16, K and V contiguous; one query token a sequence, or as
many as `chunk` names, without a mask. PyTorch: the fastest of its kernels that take grouped queries.
FlashInfer (paged decode, where it can be imported): with and without tensor cores, the faster.

--others names a file that keeps these times: with it the table and the plot need no GPU, and the times
need no matplotlib. Prints Markdown.
"""

import argparse
import json
import os
import re
import statistics
import sys

NAME = re.compile(
    r"(?:decode|chunk(?P<count>\d+))/(?P<coding>\w+)/(?P<widths>k\d+v\d+)/"
    r"q(?P<query_heads>\d+)_kv(?P<kv_heads>\d+)_d(?P<head_dim>\d+)/(?P<sequences>\d+)x(?P<tokens>\d+)"
)
EXACT = "exact k16v16"


def read(path):
    """The JSON's context, the copy bandwidth in bytes a second, and {shape: {coding: run}} in order."""
    with open(path) as file:
        report = json.load(file)
    bandwidth, steps = None, {}
    for run in report["benchmarks"]:
        if run.get("error_occurred"):
            sys.exit(f"{run['name']}: {run['error_message']}")
        name = run["run_name"].split("/iterations:")[0]
        if name == "copy_bandwidth":
            bandwidth = run["bytes_per_second"]
        match = NAME.fullmatch(name)
        if match:
            shape = tuple(int(match[key]) for key in ("query_heads", "kv_heads", "head_dim", "sequences", "tokens"))
            shape += (int(match["count"] or 1),)
            steps.setdefault(shape, {})[f"{match['coding']} {match['widths']}"] = run
    if bandwidth is None or not steps:
        sys.exit(f"{path} holds no copy_bandwidth, and no decode step or chunk: add them to the filter")
    return report["context"], bandwidth, steps


class Stopwatch:
    """Times calls with a cold L2 cache, in microseconds."""

    def __init__(self, torch, repetitions):
        self.torch, self.repetitions = torch, repetitions
        self.flushed = torch.zeros(64 << 20, dtype=torch.float32, device="cuda")  # 256 MiB
        self.sum = torch.empty((), dtype=torch.float32, device="cuda")

    def median(self, call):
        torch = self.torch
        for _ in range(3):
            call()
        pairs = []
        for _ in range(self.repetitions):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.sum(self.flushed, dim=0, out=self.sum)  # reads: nothing dirty is left to write back
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def time_torch(torch, stopwatch, shape):
    """The fastest kernel's name and time."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query_heads, kv_heads, head_dim, sequences, tokens, count = shape
    tensor = lambda heads, length: torch.randn(
        sequences, heads, length, head_dim, dtype=torch.float16, device="cuda"
    )
    q, k, v = tensor(query_heads, count), tensor(kv_heads, tokens), tensor(kv_heads, tokens)
    times = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                times[backend.name] = stopwatch.median(
                    lambda: torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, enable_gqa=query_heads != kv_heads
                    )
                )
        except RuntimeError as error:  # a kernel that does not take this shape
            print(f"{backend.name} {shape}: {str(error).splitlines()[0]}", file=sys.stderr)
    if not times:
        return None
    kernel = min(times, key=times.get)
    return {"kernel": kernel, "us": times[kernel], "all": times}


def time_flashinfer(torch, stopwatch, shape):
    try:
        import flashinfer
    except ImportError:
        return None
    query_heads, kv_heads, head_dim, sequences, tokens, count = shape
    if count > 1:
        return None
    page = 16
    pages = tokens // page
    cache = torch.randn(sequences * pages, 2, page, kv_heads, head_dim, dtype=torch.float16, device="cuda")
    q = torch.randn(sequences, query_heads, head_dim, dtype=torch.float16, device="cuda")
    whole = lambda *limits: torch.arange(*limits, dtype=torch.int32, device="cuda")
    times = {}
    for tensor_cores in (False, True):
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=tensor_cores)
        wrapper.plan(
            whole(0, (sequences + 1) * pages, pages),
            whole(sequences * pages),
            torch.full((sequences,), page, dtype=torch.int32, device="cuda"),
            query_heads,
            kv_heads,
            head_dim,
            page,
            q_data_type=torch.float16,
            kv_data_type=torch.float16,
        )
        times["tensor cores" if tensor_cores else "cuda cores"] = stopwatch.median(lambda: wrapper.run(q, cache))
    kernel = min(times, key=times.get)
    return {"kernel": kernel, "us": times[kernel], "all": times}


def measure(shapes, repetitions):
    """Times of others: {"device": ..., "torch": ..., "shapes": [{"shape", "torch", "flashinfer"}]}."""
    import torch

    stopwatch = Stopwatch(torch, repetitions)
    rows = []
    for shape in shapes:
        rows.append(
            {
                "shape": shape,
                "torch": time_torch(torch, stopwatch, shape),
                "flashinfer": time_flashinfer(torch, stopwatch, shape),
            }
        )
        torch.cuda.empty_cache()
    return {"device": torch.cuda.get_device_name(), "version": torch.__version__, "shapes": rows}


def label(shape):
    query_heads, kv_heads, head_dim, sequences, tokens, count = shape
    queries = f", {count} queries" if count > 1 else ""
    return f"{query_heads}/{kv_heads}/{head_dim}, {sequences} x {tokens:,}{queries}"


def microseconds(run):
    return run["real_time"] * {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}[run["time_unit"]]


def tabulate(steps, bandwidth, others):
    """Markdown. A packed step's cell: its time, times as fast as exact, share of the copy bandwidth at which
    it reads its bytes once."""
    codings = list(dict.fromkeys(coding for runs in steps.values() for coding in runs))
    head = ["heads/KV heads/d, sequences x tokens", "PyTorch", "FlashInfer"] + codings
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for shape, runs in steps.items():
        cells = [label(shape)]
        for who in ("torch", "flashinfer"):
            rival = others.get(shape, {}).get(who)
            cells.append(f"{rival['us']:,.1f} us" if rival else "")
        exact = microseconds(runs[EXACT]) if EXACT in runs else None
        for coding in codings:
            if coding not in runs:
                cells.append("")
                continue
            time = microseconds(runs[coding])
            faster = f", {exact / time:.2f}x" if exact and coding != EXACT else ""
            share = f", {runs[coding]['bytes_per_second'] / bandwidth:.0%}" if "bytes_per_second" in runs[coding] else ""
            cells.append(f"{time:,.1f} us{faster}{share}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(steps, others, title, path):
    """Bars: a group a shape, how many times as fast as PyTorch (exact, without it) each is. Decode steps above,
    calls of several query tokens below."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    parts = [part for part in ([s for s in steps if s[-1] == 1], [s for s in steps if s[-1] > 1]) if part]
    figure, rows = plt.subplots(len(parts), figsize=(9, 4.5 * len(parts)), squeeze=False)
    for axes, shapes in zip(rows[:, 0], parts):
        draw(axes, {shape: steps[shape] for shape in shapes}, others)
        axes.set_title(f"{'Decode' if shapes[0][-1] == 1 else 'Several query tokens'}, one layer, {title}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)


def draw(axes, steps, others):
    codings = list(dict.fromkeys(coding for runs in steps.values() for coding in runs))
    bars = {"PyTorch": {}, "FlashInfer": {}} | {coding: {} for coding in codings}
    for shape, runs in steps.items():
        for coding, run in runs.items():
            bars[coding][shape] = microseconds(run)
        for who, key in (("PyTorch", "torch"), ("FlashInfer", "flashinfer")):
            rival = others.get(shape, {}).get(key)
            if rival:
                bars[who][shape] = rival["us"]
    bars = {who: times for who, times in bars.items() if times}
    baseline = "PyTorch" if "PyTorch" in bars else EXACT
    shapes = [shape for shape in steps if shape in bars[baseline]]
    width = 0.8 / len(bars)
    for place, (who, times) in enumerate(bars.items()):
        present = [i for i, shape in enumerate(shapes) if shape in times]
        axes.bar(
            [i + (place - (len(bars) - 1) / 2) * width for i in present],
            [bars[baseline][shapes[i]] / times[shapes[i]] for i in present],
            width,
            label=who,
        )
    axes.set_xticks(range(len(shapes)), [label(shape).replace(", ", "\n") for shape in shapes], fontsize=8)
    axes.set_ylabel(f"times as fast as {baseline}")
    axes.grid(True, axis="y", alpha=0.3)
    axes.legend(fontsize=8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", help="what squat_cuda_bench wrote")
    parser.add_argument("--others", help="file of the other libraries' times: read if it is there, else written")
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--plot", help="the SVG to write")
    arguments = parser.parse_args()
    context, bandwidth, steps = read(arguments.json)
    if arguments.others and os.path.exists(arguments.others):
        with open(arguments.others) as file:
            others = json.load(file)
    else:
        others = measure(list(steps), arguments.repetitions)
        if arguments.others:
            with open(arguments.others, "w") as file:
                json.dump(others, file, indent=1)
    times = {(*row["shape"], 1)[:6]: row for row in others["shapes"]}  # older files: of decode alone
    device = context.get("device", others["device"])
    kernels = sorted({row["torch"]["kernel"] for row in others["shapes"] if row["torch"]})
    print(
        f"{device}, {context['date'][:10]}, copy bandwidth {bandwidth / 1e9:,.0f} GB/s, "
        f"PyTorch {others['version']} ({', '.join(kernels)})\n"
    )
    print(tabulate(steps, bandwidth, times))
    if arguments.plot:
        plot(steps, times, device, arguments.plot)


if __name__ == "__main__":
    main()
