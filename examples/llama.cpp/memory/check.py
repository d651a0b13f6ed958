"""Holds llama.cpp over squat's memory against llama.cpp over its own float16 cache.

usage: check.py FOLDER-OF-PROGRAMS MODEL TEXT-FILE

Exits with 1 where they differ by more than what is said below.
"""

import concurrent.futures
import contextlib
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

MOST_DIFFERENCE_OF_PERPLEXITY = 1e-3  # relative: f16 and squat16 add in different orders
WIDTHS = ("squat8", "squat4", "squat3", "squat2")
THEIRS = ("q8_0", "q4_0")

programs, model, text = map(pathlib.Path, sys.argv[1:])
failures = []


def check(promise, holds, saying=""):
    print(f"{'ok' if holds else 'FAILED':<7} {promise}{': ' if saying else ''}{saying}", flush=True)
    if not holds:
        failures.append(promise)


def perplexity(cache):
    """Of windows of 1,024 tokens in calls of 128: what a call attends to is what earlier ones have left in the cache."""
    run = subprocess.run(
        [programs / "llama-perplexity", "-m", model, "-f", text, "-c", "1024", "-b", "1024", "-ub", "128",
         "--chunks", "4", "-fa", "on", "-ctk", cache, "-ctv", cache],
        capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", run.stdout + run.stderr)
    if not found:
        raise SystemExit(f"llama-perplexity -ctk {cache} failed:\n{run.stderr[-3000:]}")
    return float(found[1])


class Server:
    def __init__(self, cache, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [programs / "llama-server", "-m", model, "--port", str(self.port), "-fa", "on", "-ctk", cache, "-ctv", cache,
             "--cache-ram", "0", *arguments],
            stdout=self.log, stderr=self.log)

    def __enter__(self):
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.call("/health")
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.5)
        self.log.seek(0)
        raise SystemExit(f"llama-server does not start:\n{self.log.read()[-3000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def call(self, path, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.load(answer)

    def complete(self, prompt, slot, tokens=24, **more):
        return self.call("/completion", {"prompt": prompt, "id_slot": slot, "n_predict": tokens, "temperature": 0,
                                         "ignore_eos": True, "cache_prompt": True, "return_tokens": True, **more})


def answers_of_slots(cache, prompts):
    """Of four slots at once, twice: the second time each goes on from what its slot holds."""
    with Server(cache, "-np", "4", "-c", "8192", "-ub", "128") as server:
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            first = list(pool.map(lambda slot: server.complete(prompts[slot], slot)["tokens"], range(len(prompts))))
            longer = [prompt + " In the end" for prompt in prompts]
            second = list(pool.map(lambda slot: server.complete(longer[slot], slot)["tokens"], range(len(prompts))))
    return first + second


def answers_around_a_file(cache, prompt):
    """What follows a prompt that a slot has, and the same after the slot has gone to a file and come back."""
    with tempfile.TemporaryDirectory() as folder:
        with Server(cache, "-np", "2", "-c", "4096", "--slot-save-path", folder + "/") as server:
            server.complete(prompt, 0, 1)
            saved = server.call("/slots/0?action=save", {"filename": "slot"})
            before = server.complete(prompt, 0)
            server.call("/slots/0?action=erase", {})
            restored = server.call("/slots/1?action=restore", {"filename": "slot"})
            after = server.complete(prompt, 1)
    return saved, before, restored, after


def answer_beyond_the_context(cache, prompt):
    with Server(cache, "-np", "1", "-c", "512", "--context-shift", "--keep", "16") as server:
        return server.complete(prompt, 0, 700)


def refusal(*arguments):
    run = subprocess.run([programs / "llama-completion", "-m", model, "-p", "x", "-n", "1", "-no-cnv", *arguments],
                         capture_output=True, text=True)
    return run.returncode, run.stderr


words = text.read_text(encoding="utf-8", errors="ignore").split()
prefix = " ".join(words[:500])
prompts = [prefix + " " + " ".join(words[start:start + 40]) for start in (600, 700, 800, 900)]

exact = perplexity("f16")
ours = perplexity("squat16")
check("perplexity at 16 bits is that of f16", abs(ours - exact) <= MOST_DIFFERENCE_OF_PERPLEXITY * exact,
      f"{ours:.4f}, f16 {exact:.4f}")
for cache in (*WIDTHS, *THEIRS):
    print(f"        perplexity over {cache}: {perplexity(cache):.4f}", flush=True)

theirs, ours = answers_of_slots("f16", prompts), answers_of_slots("squat16", prompts)
check("four slots with a common prefix answer as over f16", theirs == ours,
      f"{sum(a == b for a, b in zip(theirs, ours))} of {len(theirs)} answers equal")

for cache in ("squat16", "squat2"):
    saved, before, restored, after = answers_around_a_file(cache, prompts[0])
    check(f"{cache}: a slot that was saved and restored answers as before", before["tokens"] == after["tokens"],
          f"{saved['n_saved']} tokens, {saved['n_written']} bytes")
    check(f"{cache}: of a restored slot nothing is computed again",
          restored["n_restored"] == saved["n_saved"] and after["timings"]["prompt_n"] <= 1)

for cache in ("squat16", "squat2"):
    long = answer_beyond_the_context(cache, " ".join(words[:200]))
    check(f"{cache}: a full context is shifted, and the answer goes on", len(long["tokens"]) == 700 and long["truncated"])

code, told = refusal("-ctk", "squat4", "-ctv", "f16")
check("keys alone are refused by a sentence", code != 0 and "squat keeps both or none" in told)

raise SystemExit(1 if failures else 0)
