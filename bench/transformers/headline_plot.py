"""Draws headline.py's JSON: peak memory at the same batch, and tokens a second there and at the largest batch that fits.

usage: python3 bench/transformers/headline_plot.py headline.json headline.svg
"""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def color(cache):
    return "tab:blue" if cache.startswith("squat") else "tab:gray" if cache.startswith("float16") else "tab:orange"


def panels(runs):
    """{(model, prompt, new): {cache: {largest: run}}} in the order of the file."""
    found = {}
    for run in runs:
        caches = found.setdefault((run["model"], run["prompt"], run["new"]), {})
        caches.setdefault(run["cache"], {})[run["largest"]] = run
    return found


def draw_memory(axes, caches):
    equal = {cache: runs[False] for cache, runs in caches.items() if False in runs}
    bars = axes.barh(list(equal), [run["peak_bytes"] / 1e9 for run in equal.values()], color=[color(cache) for cache in equal])
    axes.bar_label(bars, fmt="%.1f", padding=2)
    weights = next(iter(equal.values()))["weights_bytes"] / 1e9
    axes.axvline(weights, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"peak GB, {next(iter(equal.values()))['batch']} sequences (dotted: weights)")


def draw_throughput(axes, caches):
    names, values, colors, labels = [], [], [], []
    for cache, runs in caches.items():
        for largest, run in runs.items():
            names.append(f"{cache}, batch {run['batch']}")
            values.append(run["tokens_per_second"])
            colors.append(color(cache))
            labels.append(f"{run['tokens_per_second']:,.0f}")
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, labels=labels, padding=2)
    axes.set_xlabel("new tokens a second")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        report = json.load(file)
    found = panels(report["runs"])
    figure, grid = plt.subplots(len(found), 2, figsize=(12, 3.6 * len(found)), squeeze=False)
    for (memory, throughput), ((model, prompt, new), caches) in zip(grid, found.items()):
        draw_memory(memory, caches)
        draw_throughput(throughput, caches)
        memory.set_title(f"{model}, {prompt:,} + {new} tokens")
        for axes in (memory, throughput):
            axes.invert_yaxis()
            axes.margins(x=0.18)
    figure.suptitle(f"generate() of transformers {report['transformers']} on {report['device']}")
    figure.tight_layout()
    figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()
