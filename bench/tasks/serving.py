"""What the tasks have in common: `serve` over a coding, and what became of it as JSON."""

import json
import pathlib
import subprocess
import tempfile
import time

CODINGS = ["exact"] + [
    f"{coding}:k{bits}v{bits}{pages}"
    for bits in (2, 3, 4)
    for coding, pages in (("plain", ":g32"), ("orthogonal", ":g64"), ("subspace", ""))
]


def add_arguments(parser):
    parser.add_argument("serve", help="the program of examples/serve")
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--codings", nargs="+", default=CODINGS)
    parser.add_argument("--megabytes", type=float, default=2000, help="of the cache")
    parser.add_argument("--running", type=int, default=32, help="requests that decode together")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file, to which results are added")


def complete(arguments, coding, requests):
    """Texts by id, and seconds, of requests as `serve --requests` takes them."""
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder, "requests.jsonl")
        lines.write_text("".join(json.dumps(request) + "\n" for request in requests))
        begin = time.monotonic()
        run = subprocess.run(
            [arguments.serve, arguments.model, "--requests", lines, "--coding", coding, "--device", arguments.device,
             "--megabytes", str(arguments.megabytes), "--running", str(arguments.running), "--disk", folder],
            stdout=subprocess.PIPE, check=True)
    texts = {}
    for line in run.stdout.splitlines():
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer)
        texts[answer["id"]] = texts.get(answer["id"], "") + answer.get("text", "")
    return texts, time.monotonic() - begin


def keep(arguments, task, result):
    """Prints a result and adds it to the file."""
    result = {"task": task, "model": pathlib.Path(arguments.model).stem, "device": arguments.device} | result
    print(json.dumps(result), flush=True)
    if arguments.out:
        results = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
        arguments.out.write_text(json.dumps(results + [result], indent=1) + "\n")
