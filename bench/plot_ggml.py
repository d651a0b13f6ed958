#!/usr/bin/env python3
"""Plots squat_compare_ggml's JSON: a panel of bars a case, ours beside ggml's.

usage: squat_compare_ggml --json compare.json
       python3 bench/plot_ggml.py compare.json --plot compare.svg
"""

import argparse
import json

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLORS = {"squat": "tab:blue", "ggml": "tab:orange"}


def read(path):
    """The context, and {(tokens, queries): [result]} in the order of the file."""
    with open(path) as file:
        report = json.load(file)
    cases = {}
    for result in report["results"]:
        cases.setdefault((result["tokens"], result["queries"]), []).append(result)
    return report["context"], cases


def panel(axes, case, results):
    tokens, queries = case
    names = [f"{result['library']} {result['coding']}" for result in results]
    bars = axes.barh(
        names,
        [result["median_ms"] for result in results],
        color=[COLORS[result["library"]] for result in results],
    )
    axes.bar_label(bars, labels=[f"{result['median_ms']:.3g}" for result in results], padding=2)
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.set_title(f"{queries} quer{'y' if queries == 1 else 'ies'} over {tokens:,} tokens")
    axes.set_xlabel("milliseconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json")
    parser.add_argument("--plot", required=True, help="the SVG to write")
    arguments = parser.parse_args()
    context, cases = read(arguments.json)
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.5 * columns, 3.6 * rows), squeeze=False)
    for axes in grid.flat[len(cases):]:
        axes.set_axis_off()
    for axes, (case, results) in zip(grid.flat, sorted(cases.items(), key=lambda item: item[0][::-1])):
        panel(axes, case, results)
    threads = context["threads"]
    figure.suptitle(f"32 query heads on 8 KV heads of 128 channels, {context['squat_instruction_set']}, "
                    f"{threads} thread{'' if threads == 1 else 's'}")
    figure.tight_layout()
    figure.savefig(arguments.plot)


if __name__ == "__main__":
    main()
