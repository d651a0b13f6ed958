#!/usr/bin/env python3
"""Plots the table of codings in bench/README.md: error against all bits that a cache takes.

usage: python3 bench/error_plot.py bench/results/error_against_bits.svg

Needs matplotlib (Debian: python3-matplotlib).
"""

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

KINDS = {"plain": ("KIVI", "#999999"), "orthogonal": ("SQuat", "#d08770"), "subspace": ("subspace", "#2457a7")}


def read():
    """(coding, total bits, mean KL as it is written) of the rows that have an error."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| \**`(.*)", text.split("## Error of codings")[1].split("\n\n```")[0], re.M):
        coding, *cells = [cell.strip(" *") for cell in row.split("|")]
        if len(cells) > 3 and cells[3]:
            yield coding.split("`")[0], float(cells[1]), cells[3]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("svg")
    arguments = parser.parse_args()
    plt.rcParams.update({"svg.hashsalt": "squat", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for kind, (name, colour) in KINDS.items():
        points = [point for point in read() if point[0].startswith(kind)]
        axes.scatter([bits for _, bits, _ in points], [float(kl) for _, _, kl in points], color=colour, label=name, zorder=2)
        for coding, bits, kl in points:
            place = (-70, 7) if kind == "plain" and float(kl) > 0.1 else (7, -3)  # beside another point of its height
            axes.annotate(f"{coding}  {kl}", (bits, float(kl)), xytext=place, textcoords="offset points", fontsize=8)
    axes.set_yscale("log")
    axes.set_xlim(2.8, 8)
    axes.set_ylim(2e-4, 0.25)
    axes.set_xlabel("bits an element, everything counted (16 bits take 16.54)")
    axes.set_ylabel("KL to the exact cache, nats")
    axes.set_title("SmolLM2-135M-Instruct, WikiText-2, sequences of 2,048 tokens: lower and farther left is better", fontsize=9)
    axes.grid(color="#dddddd", zorder=0)
    axes.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(arguments.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
