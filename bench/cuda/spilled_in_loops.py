#!/usr/bin/env python3
"""Registers that decode's loop over pages spills, of each kernel in a program or a cubin.

    python3 bench/cuda/spilled_in_loops.py build/bench/bench/cuda/squat_cuda_bench

Prints how many loads and stores of local memory stand among the integer products of codes, and on the way
to them, where the queries of four pages are made. Loads there cost a sixth of a step (README.md). Exits
with 1 where there are loads among the products, or no such kernels. Needs cuobjdump and c++filt.
"""

import argparse
import re
import subprocess
import sys

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(\S.*?);", re.MULTILINE)
QUERIES = 1600  # instructions in front of the products that make queries, about
END = 100  # instructions behind the last product that are the loop's, about


def sass_of_kernels(program, architecture):
    """Instructions of each kernel, by its mangled name."""
    command = ["cuobjdump", "-sass", *(["-arch", architecture] if architecture else []), program]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for kernel in text.split("Function : ")[1:]:
        yield kernel.split(None, 1)[0], INSTRUCTION.findall(kernel)


def count(instructions, name):
    return sum(re.search(rf"\b{name}\b", line) is not None for line in instructions)


def short(mangled):
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    return name.replace("squat::", "").replace("cuda::", "").replace("void ", "").split("(AttendCall")[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--arch", help="of several in the program, such as sm_90a")
    arguments = parser.parse_args()
    kernels, spills = 0, False
    for mangled, instructions in sass_of_kernels(arguments.program, arguments.arch):
        products = [i for i, line in enumerate(instructions) if "IMMA" in line]
        if "6decodeI" not in mangled or not products:
            continue
        pages = instructions[products[0] : products[-1] + END]
        queries = instructions[max(0, products[0] - QUERIES) : products[0]]
        loads, stores = count(pages, "LDL"), count(pages, "STL")
        print(f"pages {loads} loads {stores} stores, queries {count(queries, 'LDL')} {count(queries, 'STL')}:"
              f" {short(mangled)}")
        kernels, spills = kernels + 1, spills or loads > 0
    if kernels == 0:
        sys.exit("no kernels of decode in it")
    sys.exit(1 if spills else 0)


if __name__ == "__main__":
    main()
