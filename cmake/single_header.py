#!/usr/bin/env python3
"""Writes squat/squat.hpp and all that it includes of squat as one file, for projects that copy a header.

usage: single_header.py INCLUDE_DIRECTORY OUTPUT

Each header stands where it is first included. A header that is included inside `#if` is seen by that branch alone, so a
later include brings it again, and guards keep all but the first out. The file is the library from headers alone: branches for
SQUAT_COMPILED are left out. Includes of Eigen and of the standard library stay.
"""

import re
import sys
from pathlib import Path

HEAD = """\
// squat {version}: quantized KV caches for language model inference, all of squat/squat.hpp in one file.
// Made from the headers of the library by cmake/single_header.py; change those.
// Compile as C++20 with Eigen 3.4 among the include directories.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#if defined(SQUAT_COMPILED)
#error "squat: squat_single.hpp holds the kernels; squat::compiled goes with squat/squat.hpp"
#endif
"""


class Branch:
    """One `#if ... #endif` that is being read."""

    def __init__(self, seen, known=None):
        self.seen = seen  # headers that stand before the condition
        self.known = known  # whether its lines are taken; None: the compiler decides


class SingleHeader:
    def __init__(self, root):
        self.root = root
        self.lines = []
        self.seen = set()  # headers that stand before this line whatever the compiler decides
        self.written = set()  # headers that stand somewhere

    def add(self, name, conditional=False):
        guarded = conditional or name in self.written
        guard = "SQUAT_SINGLE_" + re.sub(r"\W", "_", name.removeprefix("squat/")).upper()
        self.seen.add(name)
        self.written.add(name)
        self.lines.append(f"\n// ---- {name}\n")
        if guarded:
            self.lines.append(f"#if !defined({guard})")
        if conditional:
            self.lines.append(f"#define {guard}")
        branches = []
        for line in (self.root / name).read_text(encoding="utf-8").splitlines():
            self.add_line(line, branches, conditional)
        if branches:
            raise ValueError(f"{name}: an #if without its #endif")
        if guarded:
            self.lines.append("#endif")

    def add_line(self, line, branches, conditional):
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        word, rest = directive.groups() if directive else ("", "")
        if word in ("if", "ifdef", "ifndef"):
            known = {"defined(SQUAT_COMPILED)": False, "!defined(SQUAT_COMPILED)": True}.get(rest)
            branches.append(Branch(set(self.seen), known))
            if known is not None:
                return
        elif word in ("elif", "else", "endif"):
            branch = branches[-1]
            if branch.known is None:
                self.seen = set(branch.seen)
            if word == "endif":
                branches.pop()
            if branch.known is not None:
                if word == "elif":
                    raise ValueError(f"#elif of SQUAT_COMPILED: {line}")
                branch.known = not branch.known
                return
        if any(branch.known is False for branch in branches) or line.strip() == "#pragma once":
            return
        if word == "include":
            name = rest.strip('"<>')
            if rest.startswith('"'):
                if name not in self.seen:
                    self.add(name, conditional or any(branch.known is None for branch in branches))
                return
            if name in self.seen:
                return
            self.seen.add(name)
        self.lines.append(line)


def main():
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    numbers = re.findall(r"#define SQUAT_VERSION_\w+ (\d+)", (root / "squat/core/version.hpp").read_text())
    header = SingleHeader(root)
    header.add("squat/squat.hpp")
    text = HEAD.format(version=".".join(numbers)) + "\n".join(header.lines) + "\n"
    output.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


if __name__ == "__main__":
    main()
