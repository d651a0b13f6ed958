#!/usr/bin/env python3
"""What steps over a split context cost, measured and by a model of two constants.

    split_context.sh PROGRAM > split_context.jsonl
    python3 split_context_model.py split_context.jsonl

A step of P GPUs takes

    fixed + per_token * tokens / P + gather + (P - 2) * bytes / link

microseconds. fixed and per_token are fitted to the steps of one GPU alone; gather is what all steps of two
GPUs take beyond that, in the mean: the all-gather's latency and the merge of parts. bytes is what a rank
hands to every other: query_heads * (4 + 2 * value_dim) a sequence. All GPUs are one hop apart, as where
NVLink joins them all; link is what a GPU receives a microsecond there.
"""

import json
import sys

LINK = 300e3  # bytes a microsecond: two thirds of NVLink 4's 450 GB/s in one direction

rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]


def tokens(row):
    return row["sequences"] * row["tokens"]


alone = [row for row in rows if row["gpus"] == 1]
pairs = [row for row in rows if row["gpus"] == 2]
mean_tokens = sum(map(tokens, alone)) / len(alone)
mean_step = sum(row["step_us"] for row in alone) / len(alone)
per_token = sum((tokens(row) - mean_tokens) * (row["step_us"] - mean_step) for row in alone) / sum(
    (tokens(row) - mean_tokens) ** 2 for row in alone
)
fixed = mean_step - per_token * mean_tokens
gather = sum(row["step_us"] - fixed - per_token * tokens(row) / 2 for row in pairs) / max(1, len(pairs))


def model(row, gpus):
    handed = row["sequences"] * 32 * (4 + 2 * 128)
    more = gather + (gpus - 2) * handed / LINK if gpus > 1 else 0
    return fixed + per_token * tokens(row) / gpus + more


print(f"fixed {fixed:.1f} us, {1e3 * per_token:.4f} us a thousand tokens, gather {gather:.1f} us\n")
print("| sequences x tokens | GPUs | a step, us | of one GPU's speed | the own part | all-gather | share of communication | model, us |")
print("|---|---|---|---|---|---|---|---|")
for row in rows:
    one = next(other["step_us"] for other in alone if tokens(other) == tokens(row) and other["sequences"] == row["sequences"])
    name = f"{row['sequences']} x {row['tokens']:,}"
    if row["gpus"] == 1:
        print(f"| {name} | 1 | {row['step_us']:.1f} | 1 | | | | {model(row, 1):.1f} |")
    else:
        print(
            f"| {name} | {row['gpus']} | {row['step_us']:.1f} | {one / row['step_us']:.2f} | {row['part_us']:.1f} | "
            f"{row['gather_us']:.1f} | {100 * (1 - row['part_us'] / row['step_us']):.0f} % | {model(row, row['gpus']):.1f} |"
        )
print("\n| on paper | " + " | ".join(str(gpus) for gpus in (4, 8, 16, 32, 64)) + " GPUs |")
print("|---|" + "---|" * 5)
for row in alone:
    steps = [model(row, gpus) for gpus in (4, 8, 16, 32, 64)]
    cells = " | ".join(f"{step:.0f} us, {row['step_us'] / step:.1f} times" for step in steps)
    print(f"| {row['sequences']} x {row['tokens']:,} | {cells} |")
