"""Scores of tasks against the bits of keys and values, as SVG. usage: plot.py RESULTS.json PLOT.svg"""

import json
import re
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def main(results_file, plot_file):
    results = json.load(open(results_file))
    tasks = list(dict.fromkeys((r["model"], r["task"]) for r in results))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4 * len(tasks), 3), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks):
        of_task = [r for r in results if (r["model"], r["task"]) == task]
        for coding in ("plain", "orthogonal", "subspace"):
            points = sorted((int(re.search(r"k(\d+)v", r["coding"])[1]), r["score"]) for r in of_task
                            if r["coding"].startswith(coding))
            axis.plot(*zip(*points), marker="o", label=coding)
        for r in of_task:
            if r["coding"] == "exact":
                axis.axhline(r["score"], color="gray", linestyle="--", label="exact")
        axis.set(title="\n".join(task), xlabel="bits", xticks=[2, 3, 4], ylim=(0, 1.1 * max(r["score"] for r in of_task)))
    axes[0][0].set_ylabel("score")
    axes[0][0].legend(frameon=False)
    figure.savefig(plot_file, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
