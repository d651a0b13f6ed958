#!/usr/bin/env python3
"""Plots what a soak measured: memory of the process and of the cache over time, and what was going on.

usage: build/g++/tests/soak 1800 10 soak.csv
       python3 bench/soak.py soak.csv soak.svg

Needs matplotlib (Debian: python3-matplotlib).
"""

import argparse
import csv

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def read(path):
    """{column: numbers}"""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv")
    parser.add_argument("svg")
    arguments = parser.parse_args()
    samples = read(arguments.csv)
    minutes = [seconds / 60 for seconds in samples["seconds"]]
    plt.rcParams["svg.hashsalt"] = "squat"
    figure, (memory, load) = plt.subplots(2, 1, figsize=(7, 5), sharex=True)
    memory.plot(minutes, samples["process_mib"], label="process, resident")
    memory.plot(minutes, samples["cache_mib"], label="cache, all that it has allocated")
    if any(samples["device_mib"]):
        memory.plot(minutes, samples["device_mib"], label="device, in use")
    memory.set_ylabel("MiB")
    memory.set_ylim(bottom=0)
    memory.legend(loc="center right")
    memory.set_title(
        f"{samples['requests'][-1]:,.0f} requests, {samples['tokens'][-1]:,.0f} tokens, "
        f"{samples['preemptions'][-1]:,.0f} saved and loaded, {samples['evictions'][-1]:,.0f} prefixes evicted",
        fontsize=9,
    )
    load.plot(minutes, samples["pages"], label="pages in use")
    load.plot(minutes, samples["shared_pages"], label="of these shared")
    load.plot(minutes, samples["running"], label="requests running")
    load.plot(minutes, samples["preempted"], label="requests preempted")
    load.set_ylim(bottom=0)
    load.set_xlabel("minutes")
    load.legend(loc="upper right", ncol=2, fontsize=8)
    figure.tight_layout()
    figure.savefig(arguments.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
