"""Holds llama.cpp over squat's memory against llama.cpp over its own float16 cache.

usage: check.py FOLDER-OF-PROGRAMS MODEL TEXT-FILE

Weights are unpacked to float16 in a temporary copy: over packed ones llama.cpp rounds activations to 8 bits, where the last
digit of a sum flips a rounding, and greedy answers part. Exits with 1 where the caches differ by more than what is said below.
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
NEAR_TIE = 0.02  # nats: greedy answers may part where two tokens are as likely as this
WIDTHS = ("squat8", "squat4", "squat3", "squat2")
THEIRS = ("q8_0", "q4_0")

programs, packed_model, text = map(pathlib.Path, sys.argv[1:])
failures = []
folder = tempfile.TemporaryDirectory()
model = pathlib.Path(folder.name) / "unpacked.gguf"
subprocess.run([programs / "llama-quantize", "--allow-requantize", packed_model, model, "f16"], check=True,
               capture_output=True)


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
    def __init__(self, cache, *arguments, flash_attention=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [programs / "llama-server", "-m", model, "--port", str(self.port), "-ctk", cache, "-ctv", cache,
             "-fa", "on" if flash_attention else "off", "--cache-ram", "0", *arguments],
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
                                         "ignore_eos": True, "cache_prompt": True, "return_tokens": True, "n_probs": 5, **more})


def answers_of_slots(prompts, *server_arguments, **server_options):
    """Of four slots at once, twice: the second time each goes on from what its slot holds."""
    with Server(*server_arguments, "-np", "4", "-c", "8192", "-ub", "128", **server_options) as server:
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            first = list(pool.map(server.complete, prompts, range(len(prompts))))
            second = list(pool.map(server.complete, [prompt + " In the end" for prompt in prompts], range(len(prompts))))
    return first + second


def same_answer(a, b):
    """Whether the tokens are the same, up to one where each answer holds the other's for as likely as its own."""
    for i, (token, other) in enumerate(zip(a["tokens"], b["tokens"])):
        if token != other:
            told = ({choice["id"]: choice["logprob"] for choice in answer["completion_probabilities"][i]["top_logprobs"]}
                    for answer in (a, b))
            return all(token in of and other in of and abs(of[token] - of[other]) < NEAR_TIE for of in told)
    return len(a["tokens"]) == len(b["tokens"])


def answers_around_a_file(cache, prompt):
    """What follows a prompt that a slot has, and the same after the slot has gone to a file and come back."""
    with Server(cache, "-np", "2", "-c", "4096", "--slot-save-path", folder.name + "/") as server:
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


calls = subprocess.run([programs / "llama-squat-check", packed_model, text], capture_output=True, text=True)
print(calls.stdout, end="")
check("the memory's calls do what those of llama.cpp's own do", calls.returncode == 0, calls.stderr[-1000:])

words = text.read_text(encoding="utf-8", errors="ignore").split()
prefix = " ".join(words[:500])
prompts = [prefix + " " + " ".join(words[start:start + 40]) for start in (600, 700, 800, 900)]

exact = perplexity("f16")
ours = perplexity("squat16")
check("perplexity at 16 bits is that of f16", abs(ours - exact) <= MOST_DIFFERENCE_OF_PERPLEXITY * exact,
      f"{ours:.4f}, f16 {exact:.4f}")
for cache in (*WIDTHS, *THEIRS):
    print(f"        perplexity over {cache}: {perplexity(cache):.4f}", flush=True)

# llama.cpp's flash attention adds values in float16, which alone moves likelihoods by 0.05 nats.
theirs, ours = answers_of_slots(prompts, "f16", flash_attention=False), answers_of_slots(prompts, "squat16")
check("four slots with a common prefix answer as over f16", all(map(same_answer, theirs, ours)),
      f"{sum(a['tokens'] == b['tokens'] for a, b in zip(theirs, ours))} of {len(theirs)} to the last token")

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
