"""The headline of the SQuat paper (arXiv 2503.24358): peak memory and throughput of transformers' generate() over different caches.

Models have the shapes of Llama 2 7B and Llama 3 8B and random weights in float16, made on the device; prompts are random tokens. Time
and memory depend on neither, but for `orthogonal`, which learns nothing from keys that are noise and packs them late. What is generated
means nothing: bench/README.md has what codings do to predictions.

Every cache runs at one batch for all, and at the largest that fits: estimated from what a sequence took in the first, and lowered where
memory runs out. A run that sees no end within --seconds is not begun. Prints a line a run, and writes all to --json.
"""

import argparse
import contextlib
import gc
import json
import os
import sys
import time

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # or holes between torch's blocks decide what fits

import squat
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, QuantizedCache, StaticCache

SHAPES = {
    "llama-2-7b": dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=32),
    "llama-3-8b": dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=8, rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
}  # fmt: skip
LENGTHS = {"160+338": 64, "2000+500": 16}  # prompt + new tokens, and the batch that all caches run at


def squat_cache(bits, **options):
    return lambda config, tokens: squat.Cache(config, bits, **options)


@contextlib.contextmanager
def parts_compiled(model, name):
    """Norms, MLPs and rotary embeddings, the elementwise work of a layer, by torch.compile() where a cache's name says so."""
    if not name.endswith("compiled"):
        yield
        return
    parts = [module for module in model.modules() if type(module).__name__.endswith(("RMSNorm", "MLP"))]
    code, name_of_turn = sys.modules[type(model).__module__], "apply_rotary_pos_emb"
    turn = getattr(code, name_of_turn)
    setattr(code, name_of_turn, torch.compile(turn, dynamic=False))
    for part in parts:
        part.compile(dynamic=False)
    try:
        yield
    finally:
        setattr(code, name_of_turn, turn)
        for part in parts:
            part._compiled_call_impl = None


def steps_of(model, name):
    """How generate() takes its steps. Over a static cache it compiles them itself, with all else that a step is."""
    captured = name.startswith("squat") and not name.endswith("eager") and model.device.type == "cuda"
    return squat.captured_steps(model) if captured else contextlib.nullcontext()


def quantized_cache(backend, **options):
    return lambda config, tokens: QuantizedCache(backend, config, **options)


# Of a model's config, and of how many tokens a sequence will have. generate() compiles a model's steps where the cache is static.
CACHES = {
    "float16": lambda config, tokens: DynamicCache(config=config),
    "float16 static": lambda config, tokens: StaticCache(config=config, max_cache_len=tokens),
    "squat subspace 2": squat_cache(2),
    "squat subspace 2 eager": squat_cache(2),
    "squat subspace 2 compiled": squat_cache(2),
    "squat subspace 4 compiled": squat_cache(4),
    "squat orthogonal 2": squat_cache(2, coding="orthogonal"),
    "squat subspace 4": squat_cache(4),
    "hqq 2": quantized_cache("hqq", nbits=2),
    "hqq 4": quantized_cache("hqq", nbits=4),
    "quanto 2": quantized_cache("quanto", nbits=2),
    "quanto 4": quantized_cache("quanto", nbits=4),
    "fp8": quantized_cache("fp8"),
}


class Memory:
    """Of the device, since it was made. torch knows what it allocates itself; what squat does is the rest."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.others_before = self._others()

    def _others(self):
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    def report(self):
        """torch's peak and what others hold at the end, when they hold most: their sum is no less than the peak of both."""
        if not self.cuda:
            return {"torch_peak_bytes": 0, "squat_bytes": 0, "peak_bytes": 0}
        torch_peak, others = torch.cuda.max_memory_allocated(), max(0, self._others() - self.others_before)
        return {"torch_peak_bytes": torch_peak, "squat_bytes": others, "peak_bytes": torch_peak + others}


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def is_out_of_memory(error):
    return isinstance(error, torch.cuda.OutOfMemoryError) or "device memory" in str(error) or "out of memory" in str(error)


def generate(model, cache, batch, prompt, new):
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt), device=model.device)
    return model.generate(ids, attention_mask=torch.ones_like(ids), cache=cache, do_sample=False, min_new_tokens=new,
                          max_new_tokens=new)  # fmt: skip


def timed(device, work):
    synchronize(device)
    begin = time.perf_counter()
    work()
    launched = time.perf_counter() - begin
    synchronize(device)
    return launched, time.perf_counter() - begin


def empty(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(model, name, batch, prompt, new):
    """Of one generate(), behind another that warms up with few tokens. None where memory runs out."""
    device = model.device
    model.set_attn_implementation("squat" if name.startswith("squat") else "sdpa")
    try:
        # What was compiled is of a batch.
        warm_batch = batch if name == "float16 static" or name.endswith("compiled") else min(batch, 4)
        with parts_compiled(model, name):
            generate(model, CACHES[name](model.config, prompt + new), warm_batch, prompt, 4)
            empty(device)
            memory, cache = Memory(device), CACHES[name](model.config, prompt + new)
            with steps_of(model, name):
                _, seconds = timed(device, lambda: generate(model, cache, batch, prompt, new))
        result = dict(cache=name, batch=batch, prompt=prompt, new=new, seconds=round(seconds, 3),
                      tokens_per_second=round(batch * new / seconds, 1), **memory.report())  # fmt: skip
        if name.startswith("squat"):
            cache.check()
            result["cache_bytes"] = cache.memory()["total_bytes"]
        return result
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        cache = None
        empty(device)


def weights_of(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def largest_batch(model, result, share):
    """That should fit: a sequence takes what it took in `result`."""
    free, total = torch.cuda.mem_get_info()
    left = free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(share * left * result["batch"] / (result["peak_bytes"] - weights_of(model)))


def profile(model, name, batch, prompt, steps=8):
    """Where the time of a prompt and of decode steps goes: kernels by kind, and what the host takes to launch them."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    device = model.device
    model.set_attn_implementation("squat" if name.startswith("squat") else "sdpa")
    cache = CACHES[name](model.config, prompt + 4 * steps)
    mask = torch.ones(batch, prompt + 4 * steps, dtype=torch.long, device=device)
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt), device=device)
    done = 0

    def take(count):
        nonlocal done
        for _ in range(count):
            done += 1
            position_ids = torch.full((batch, 1), prompt + done - 1, device=device)
            model(input_ids=ids[:, :1], attention_mask=mask[:, : prompt + done], position_ids=position_ids, cache=cache)

    def show(profiled, what, kept, time_of):
        for event in sorted(filter(kept, profiled.key_averages()), key=time_of)[: -7 : -1]:
            print(f"    {what}: {time_of(event) / 1e3:9.3f} ms {event.count:6} times {event.key[:110]}", flush=True)

    def show_all(profiled):
        show(profiled, "kernels", lambda event: event.self_device_time_total, lambda event: event.self_device_time_total)
        show(profiled, "host", lambda event: event.key.startswith("cuda"), lambda event: event.self_cpu_time_total)

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.no_grad(), parts_compiled(model, name):
        with profiler(activities=activities) as profiled:
            _, passed = timed(device, lambda: model(ids, attention_mask=mask[:, :prompt], cache=cache, logits_to_keep=1))
        print(f"profile {name:20} batch {batch:5}: prompt of {prompt} {passed:.2f} s", flush=True)
        show_all(profiled)
        with steps_of(model, name):
            take(steps)
            launched, passed = timed(device, lambda: take(steps))
            with profiler(activities=activities) as profiled:
                timed(device, lambda: take(1))
    kinds = {}
    for event in profiled.key_averages():
        if event.self_device_time_total:
            key = event.key
            kind = "squat" if "squat" in key else "linear" if any(x in key.lower() for x in ("gemm", "nvjet", "cutlass_80", "xmma")) else "others"
            kinds[kind] = kinds.get(kind, 0) + event.self_device_time_total
    text = ", ".join(f"{kind} {time_us / 1e3:.2f} ms" for kind, time_us in kinds.items())
    print(f"profile {name:20} batch {batch:5} behind {prompt}: step {passed / steps * 1e3:.2f} ms, launched in {launched / steps * 1e3:.2f} ms; {text}", flush=True)
    show_all(profiled)
    cache = None
    empty(device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="llama-2-7b,llama-3-8b", help="default: %(default)s")
    parser.add_argument("--lengths", default=",".join(LENGTHS), help="prompt + new tokens; default: %(default)s")
    parser.add_argument("--caches", default="float16,squat subspace 2,hqq 2,squat subspace 4,hqq 4",
                        help=f"of {', '.join(CACHES)}; default: %(default)s")  # fmt: skip
    parser.add_argument("--batch", type=int, help="that all caches run at; default: 64 for 160+338, 16 for 2000+500")
    parser.add_argument("--equal-only", action="store_true", help="no largest batches")
    parser.add_argument("--share", type=float, default=0.93, help="of free memory that a largest batch may take; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run that would end later")
    parser.add_argument("--profile", action="store_true", help="print where the time of decode steps goes, and measure nothing")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--hidden", type=int, help="instead of the shape's; heads and MLP shrink with it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="file to write")
    args = parser.parse_args()
    start, device = time.perf_counter(), torch.device(args.device)
    results = []
    named = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    versions = dict(device=named, torch=torch.__version__, transformers=transformers.__version__)

    def keep(result):
        results.append(result)
        print("{model:11} {prompt}+{new} {cache:20} batch {batch:5}: {tokens_per_second:9.1f} tokens/s, {gb:6.2f} GB "
              "(torch {torch_gb:.2f}, squat {squat_gb:.2f}), {seconds:.1f} s".format(
                  gb=result["peak_bytes"] / 1e9, torch_gb=result["torch_peak_bytes"] / 1e9, squat_gb=result["squat_bytes"] / 1e9,
                  **result), flush=True)  # fmt: skip
        if args.json:
            with open(args.json, "w") as file:
                json.dump(versions | dict(runs=results), file, indent=1)

    for name in args.models.split(","):
        shape = dict(SHAPES[name])
        if args.hidden:
            for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
                shape[key] = max(1, shape[key] * args.hidden // shape["hidden_size"])
            shape["hidden_size"] = args.hidden
        if args.layers:
            shape["num_hidden_layers"] = args.layers
        config = LlamaConfig(**shape, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=None)
        with torch.device(device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
        for lengths in args.lengths.split(","):
            prompt, new = map(int, lengths.split("+"))
            batch = args.batch or LENGTHS.get(lengths, 16)
            equal = {}
            for cache in args.caches.split(","):
                if args.profile:
                    profile(model, cache, batch, prompt)
                    continue
                if time.perf_counter() - start + 1.2 * max((r["seconds"] for r in equal.values()), default=0) > args.seconds:
                    print(f"{name} {lengths} {cache}: no time", flush=True)
                    continue
                result = measure(model, cache, batch, prompt, new)
                if result is None:
                    print(f"{name} {lengths} {cache}: {batch} sequences do not fit", flush=True)
                    continue
                equal[cache] = result
                keep(dict(model=name, weights_bytes=weights_of(model), largest=False, **result))
            if args.equal_only or device.type != "cuda":
                continue
            for cache, result in equal.items():
                batch, found = largest_batch(model, result, args.share), None
                while found is None and batch > result["batch"]:
                    if time.perf_counter() - start + 2.5 * result["seconds"] > args.seconds:
                        print(f"{name} {lengths} {cache}: no time for the largest batch", flush=True)
                        break
                    found = measure(model, cache, batch, prompt, new)
                    if found is None:
                        print(f"{name} {lengths} {cache}: {batch} sequences do not fit", flush=True)
                        batch = int(0.93 * batch)
                if found:
                    keep(dict(model=name, weights_bytes=weights_of(model), largest=True, **found))
        del model
        empty(device)


if __name__ == "__main__":
    main()
