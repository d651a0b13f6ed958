#!/usr/bin/env python3
"""Turns squat_bench's JSON into a table of decode steps and a roofline plot.

usage: squat_bench --benchmark_filter='read_bandwidth|decode/' --benchmark_repetitions=5 \\
           --benchmark_format=json > decode.json
       python3 bench/roofline.py decode.json --shape q32_kv8_d128 --plot roofline.svg

The roofline of a coding is what a step would take if it did nothing but read its bytes once, at the
bandwidth measured in the same run. Needs matplotlib for the plot alone.
"""

import argparse
import json
import re
import statistics
import sys

NAME = re.compile(r"decode/(?P<coding>\w+)/(?P<widths>k\d+v\d+)/(?P<shape>\w+)/(?P<tokens>\d+)")


def read(path):
    """The bandwidth in bytes a second, and {(shape, tokens): {coding: (seconds, bytes)}}, medians."""
    with open(path) as file:
        report = json.load(file)
    runs = {}
    for run in report["benchmarks"]:
        if run.get("run_type") != "aggregate":
            runs.setdefault(run["run_name"], []).append(run)
    if "read_bandwidth" not in runs:
        sys.exit("the JSON holds no read_bandwidth: add it to the filter")
    bandwidth = statistics.median(run["bytes_per_second"] for run in runs["read_bandwidth"])
    steps = {}
    for name, measured in runs.items():
        match = NAME.match(name)
        if not match:
            continue
        seconds = statistics.median(run["cpu_time"] for run in measured) * 1e-6
        tokens = int(match["tokens"])
        key = match["shape"], tokens
        steps.setdefault(key, {})[f"{match['coding']} {match['widths']}"] = (
            seconds,
            measured[0]["bytes_per_token"] * tokens,
        )
    return report["context"], bandwidth, steps


def table(bandwidth, steps, shape):
    lines = ["| tokens | coding | step | times faster than exact | GB/s of packed bytes | of the roofline |"]
    lines.append("|---|---|---|---|---|---|")
    for (name, tokens), codings in sorted(steps.items()):
        if name != shape:
            continue
        exact = codings.get("exact k16v16", (None,))[0]
        for coding, (seconds, size) in codings.items():
            faster = f"{exact / seconds:.2f}" if exact else ""
            lines.append(
                f"| {tokens:,} | {coding} | {seconds * 1e6:,.0f} us | {faster} "
                f"| {size / seconds / 1e9:.1f} | {size / bandwidth / seconds:.0%} |"
            )
    return "\n".join(lines)


def plot(bandwidth, steps, shape, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    by_coding = {}
    for (name, tokens), codings in sorted(steps.items()):
        if name == shape:
            for coding, (seconds, size) in codings.items():
                by_coding.setdefault(coding, []).append((tokens, seconds * 1e6, size / bandwidth * 1e6))
    for coding, points in by_coding.items():
        tokens, measured, least = zip(*points)
        (line,) = axes.loglog(tokens, measured, marker="o", label=coding)
        axes.loglog(tokens, least, linestyle=":", color=line.get_color())
    axes.set_xlabel("cached tokens")
    axes.set_ylabel("decode step of one layer, microseconds")
    axes.set_title(f"{shape}; dotted: reading the bytes once at {bandwidth / 1e9:.1f} GB/s")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json")
    parser.add_argument("--shape", default="q32_kv8_d128")
    parser.add_argument("--plot", help="the SVG to write")
    arguments = parser.parse_args()
    context, bandwidth, steps = read(arguments.json)
    print(f"{context.get('compiler', '')}, {context.get('instruction_set', '')}, "
          f"{context['num_cpus']} CPUs of {context['mhz_per_cpu']} MHz, read bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    print(table(bandwidth, steps, arguments.shape))
    if arguments.plot:
        plot(bandwidth, steps, arguments.shape, arguments.plot)


if __name__ == "__main__":
    main()
