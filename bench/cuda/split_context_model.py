#!/usr/bin/env python3
"""What steps over a split context cost, measured and by a model of two constants.

    split_context.sh PROGRAM > split_context.jsonl
    python3 split_context_model.py split_context.jsonl --plot split_context.svg

A step of P GPUs takes

    fixed + per_token * tokens / P + gather + (P - 2) * bytes / link

microseconds. fixed and per_token are fitted to the steps of one GPU alone; gather is what all steps of two
GPUs take beyond that, in the mean: the all-gather's latency and the merge of parts. bytes is what a rank
hands to every other, as counted in the steps of two. All GPUs are one hop apart, as where NVLink joins them
all; link is what a GPU receives a microsecond there. The plot needs matplotlib.
"""

import argparse
import json

LINK = 300e3  # bytes a microsecond: two thirds of NVLink 4's 450 GB/s in one direction
ON_PAPER = (4, 8, 16, 32, 64)


def workload(row):
    return row["sequences"], row["tokens"]


def name(row):
    return f"{row['sequences']} x {row['tokens']:,}"


def tokens(row):
    return row["sequences"] * row["tokens"]


class Model:
    def __init__(self, rows):
        alone = [row for row in rows if row["gpus"] == 1]
        pairs = [row for row in rows if row["gpus"] == 2]
        mean_tokens = sum(map(tokens, alone)) / len(alone)
        mean_step = sum(row["step_us"] for row in alone) / len(alone)
        products = sum((tokens(row) - mean_tokens) * (row["step_us"] - mean_step) for row in alone)
        self.per_token = products / sum((tokens(row) - mean_tokens) ** 2 for row in alone)
        self.fixed = mean_step - self.per_token * mean_tokens
        more = [row["step_us"] - self.fixed - self.per_token * tokens(row) / 2 for row in pairs]
        self.gather = sum(more) / max(1, len(more))
        self.handed = {workload(row): row["bytes"] for row in pairs}

    def step(self, row, gpus):
        more = self.gather + (gpus - 2) * self.handed[workload(row)] / LINK if gpus > 1 else 0
        return self.fixed + self.per_token * tokens(row) / gpus + more


def print_tables(rows, model):
    alone = {workload(row): row for row in rows if row["gpus"] == 1}
    captured = any(row.get("graph_us") for row in rows)  # files of earlier programs have none
    print(f"fixed {model.fixed:.1f} us, {1e3 * model.per_token:.4f} us a thousand tokens, gather {model.gather:.1f} us\n")
    heads = ["sequences x tokens", "GPUs", "a step, us", "of one GPU's speed", "the own part", "all-gather"]
    heads += ["share of communication", "model, us"] + (["captured, us"] if captured else [])
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        cells = [name(row), f"{row['gpus']}", f"{row['step_us']:.1f}"]
        if row["gpus"] == 1:
            cells += ["1", "", "", ""]
        else:
            share = 1 - row["part_us"] / row["step_us"]
            cells += [f"{alone[workload(row)]['step_us'] / row['step_us']:.2f}", f"{row['part_us']:.1f}"]
            cells += [f"{row['gather_us']:.1f}", f"{100 * share:.0f} %"]
        cells.append(f"{model.step(row, row['gpus']):.1f}")
        if captured:
            cells.append(f"{row['graph_us']:.1f}")
        print("| " + " | ".join(cells) + " |")
    print("\n| on paper | " + " | ".join(map(str, ON_PAPER)) + " GPUs |\n|---|" + "---|" * len(ON_PAPER))
    for row in alone.values():
        steps = [model.step(row, gpus) for gpus in ON_PAPER]
        print(f"| {name(row)} | " + " | ".join(f"{step:.0f} us, {row['step_us'] / step:.1f} times" for step in steps) + " |")


def plot(rows, model, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for key in dict.fromkeys(map(workload, rows)):
        same = [row for row in rows if workload(row) == key]
        gpus = (1, 2) + ON_PAPER
        (line,) = axes.loglog(gpus, [model.step(same[0], count) for count in gpus], linestyle=":")
        measured = {"marker": "o", "linestyle": "", "color": line.get_color()}
        axes.loglog([row["gpus"] for row in same], [row["step_us"] for row in same], label=name(same[0]), **measured)
    axes.set_xticks(gpus, map(str, gpus))
    axes.minorticks_off()
    axes.set_yticks((25, 50, 100, 200, 400), ("25", "50", "100", "200", "400"))
    axes.set_xlabel("GPUs")
    axes.set_ylabel("microseconds a step (dotted: by the model)")
    axes.set_title(f"{rows[0]['device']}, {rows[0]['shape']}, 2 bits")
    axes.legend(title="sequences x tokens")
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="what split_context.sh has printed")
    parser.add_argument("--plot", metavar="FILE", help="an SVG of steps against GPUs")
    arguments = parser.parse_args()
    with open(arguments.rows) as file:
        rows = [json.loads(line) for line in file if line.startswith("{")]
    model = Model(rows)
    print_tables(rows, model)
    if arguments.plot:
        plot(rows, model, arguments.plot)


if __name__ == "__main__":
    main()
