"""squat.Cache under transformers, on tiny random models of every kind that it serves, on the CPU and on a GPU.

usage: models_test.py [unittest's arguments]
"""

import contextlib
import copy
import pathlib
import tempfile
import unittest
import warnings
from unittest import mock

import squat
import torch
from squat import _native
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

SHAPE = dict(vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=None)
WINDOW = 20
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=256)
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, head_dim=32),
    "llama, scaled": LlamaConfig(**SHAPE, head_dim=32, rope_parameters=LLAMA3),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3, heads of 40": Qwen3Config(**SHAPE, head_dim=40),
    "mistral": MistralConfig(**SHAPE, head_dim=32, sliding_window=WINDOW),
    "gemma2": Gemma2Config(**SHAPE, head_dim=32, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=WINDOW),
    "gpt-oss": GptOssConfig(**SHAPE, head_dim=32, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
}
NEEDS_EAGER = ("gemma2", "gpt-oss")  # sdpa knows neither caps nor sink logits


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().float()


def prompt():
    """Three sequences, two of them padded on the left."""
    ids = torch.randint(2, 200, (3, 45), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[2, :19] = 0
    return ids * mask, mask


def exact(config, **options):
    return squat.Cache(config, bits=16, coding="plain", exact_rows="float32", threads=1, **options)


WITHOUT_GPU = (
    "this build of squat-kv is for the CPU alone"
    if not _native.has_cuda
    else "torch sees no GPU"
    if not torch.cuda.is_available()
    else None
)


class Models(unittest.TestCase):
    def expect_same_tokens(self, name, rows, **how):
        config = CONFIGS[name]
        model = model_of(config)
        ids, mask = (x[rows] for x in prompt())
        how |= dict(input_ids=ids, attention_mask=mask, max_new_tokens=50, do_sample=False)
        model.set_attn_implementation("eager" if name in NEEDS_EAGER else "sdpa")
        expected = model.generate(**how)
        model.set_attn_implementation("squat")
        self.assertTrue(torch.equal(model.generate(**how, cache=exact(config)), expected), name)

    def test_one_sequence(self):
        for name in CONFIGS:
            self.expect_same_tokens(name, slice(1, 2))

    def test_padded_batch(self):
        for name in CONFIGS:
            self.expect_same_tokens(name, slice(0, 3))

    def test_beams(self):
        for name in CONFIGS:
            self.expect_same_tokens(name, slice(0, 3), num_beams=4)

    def test_prompt_in_chunks(self):
        for name in CONFIGS:
            self.expect_same_tokens(name, slice(1, 2), prefill_chunk_size=16)

    def test_prompt_lookup(self):
        for name in CONFIGS:
            self.expect_same_tokens(name, slice(1, 2), prompt_lookup_num_tokens=5)


@contextlib.contextmanager
def replays():
    """A list that grows by what torch's graphs are replayed."""
    seen, replay = [], torch.cuda.CUDAGraph.replay

    def noted(graph):
        seen.append(graph)
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", noted):
        yield seen


@unittest.skipIf(WITHOUT_GPU, WITHOUT_GPU)
class ModelsOnGpu(Models):
    """Exact rows are float16 there, and kernels round queries and weights to it: logits differ by about 0.001 of their spread, and the
    tokens of a sequence may, once two are as likely. Up to there, logits are compared; of beams, their scores."""

    tolerance = 0.01  # of the spread of logits

    def expect_same_tokens(self, name, rows, **how):
        config = CONFIGS[name]
        model = model_of(config).cuda()
        if name == "gpt-oss":
            model.set_experts_implementation("batched_mm")  # the other ways wait for the GPU
        ids, mask = (x[rows].cuda() for x in prompt())
        how |= dict(input_ids=ids, attention_mask=mask, max_new_tokens=50, do_sample=False)
        how |= dict(return_dict_in_generate=True, output_logits=True, output_scores=True)
        model.set_attn_implementation("eager" if name in NEEDS_EAGER else "sdpa")
        expected = model.generate(**how)
        model.set_attn_implementation("squat")
        for steps in (contextlib.nullcontext(), squat.captured_steps(model)):
            cache = squat.Cache(config, bits=16, coding="plain", threads=1)
            with steps, replays() as replayed:
                found = model.generate(**how, cache=cache)
            cache.check()
            if isinstance(steps, squat.captured_steps) and set(how).isdisjoint(("num_beams", "prompt_lookup_num_tokens")):
                self.assertGreater(len(replayed), 40)
            self.expect_same_logits(name, how, found, expected)

    def expect_same_logits(self, name, how, found, expected):
        ids = how["input_ids"]
        if "num_beams" in how:
            return torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-3, rtol=0)
        compared = 0
        for row in range(len(ids)):
            for step, (one, other) in enumerate(zip(found.logits, expected.logits)):
                distance = ((one[row] - other[row]).abs().max() / other[row].std()).item()
                self.assertLess(distance, self.tolerance, f"{name}, sequence {row}, token {step}")
                compared += 1
                at = ids.shape[1] + step
                if found.sequences[row, at] != expected.sequences[row, at]:
                    break
        self.assertGreater(compared, 20)


class Caches(unittest.TestCase):
    device = "cpu"
    bits, most_bits = (2, (4, 3)), 4.5

    def setUp(self):
        self.config = CONFIGS["llama"]
        self.model = model_of(self.config).to(self.device)
        self.model.set_attn_implementation("squat")
        self.ids = torch.randint(2, 200, (1, 300), generator=torch.Generator().manual_seed(1)).to(self.device)

    def exact(self):
        return exact(self.config)

    def small(self, **options):
        return squat.Cache(self.config, page_tokens=32, residual=32, statistics_tokens=64, threads=1, **options)

    def logits(self, cache, ids):
        with torch.no_grad():
            return self.model(ids, cache=cache).logits[:, -1]

    def test_few_bits_are_near(self):
        expected = self.logits(self.exact(), self.ids)
        for bits in self.bits:
            cache = self.small(bits=bits)
            self.logits(cache, self.ids[:, :200])
            found = self.logits(cache, self.ids[:, 200:])
            self.assertLess(((found - expected).norm() / expected.norm()).item(), 0.2)
            self.assertLess(cache.memory()["packed_bits_per_element"], self.most_bits)

    def test_types(self):
        for dtype in (torch.float16, torch.bfloat16):
            self.model.to(dtype)
            self.assertTrue(self.logits(self.small(), self.ids).isfinite().all())

    def test_fork_save_load_reset(self):
        cache = self.small()
        self.logits(cache, self.ids[:, :250])
        other = cache.fork()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "cache")
            cache.save(path)
            options = dict(page_tokens=32, residual=32, statistics_tokens=64, threads=1, device=self.device)
            loaded = squat.Cache.load(path, self.config, **options)
            content = path.read_bytes()
            for damaged in (b"", content[:-1], content[:40], b"x" + content[1:], content[:200] + b"\xff" + content[201:]):
                path.write_bytes(damaged)
                with self.assertRaises(squat.Error):
                    squat.Cache.load(path, self.config, **options)
        expected = self.logits(cache, self.ids[:, 250:])
        for same in (other, loaded):
            self.assertTrue(torch.equal(self.logits(same, self.ids[:, 250:]), expected))
        cache.reset()
        self.assertEqual(cache.get_seq_length(), 0)
        self.logits(cache, self.ids)
        self.assertEqual(other.get_seq_length(), 300)

    def test_memory_stays_flat(self):
        """Of a model whose layers all have a window."""
        config = MistralConfig(**SHAPE | dict(num_hidden_layers=1), head_dim=32, sliding_window=WINDOW)
        model = model_of(config).to(self.device)
        model.set_attn_implementation("squat")
        cache = squat.Cache(config, page_tokens=32, residual=32, statistics_tokens=64, threads=1)
        held = []
        with torch.no_grad():
            for _ in range(40):
                model(self.ids[:, :250], cache=cache)
                held.append(cache.memory()["total_bytes"])
        self.assertEqual(cache.get_seq_length(), 10000)
        self.assertEqual(max(held[20:]), max(held[5:20]))

    def test_says_what_is_wrong(self):
        other = model_of(self.config).to(self.device)
        other.set_attn_implementation("sdpa")
        with self.assertRaisesRegex(TypeError, "attention interface"):
            other(self.ids, cache=self.small())
        with self.assertRaisesRegex(TypeError, "needs its cache"):
            self.model(self.ids)
        holes = torch.ones_like(self.ids)
        holes[0, 5] = 0
        with self.assertRaisesRegex(ValueError, "left alone"):
            self.model(self.ids, attention_mask=holes, cache=self.small())
        cache = self.small()
        self.logits(cache, self.ids)
        with self.assertRaisesRegex(ValueError, "1 sequences; these are 2"):
            self.model(self.ids.repeat(2, 1), cache=cache)
        with self.assertRaisesRegex(squat.Error, "bits"):
            self.logits(squat.Cache(self.config, bits=5), self.ids)
        with self.assertRaisesRegex(ValueError, "squat.Cache"):
            squat.Cache(FalconConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4))


@unittest.skipIf(WITHOUT_GPU, WITHOUT_GPU)
class CachesOnGpu(Caches):
    device = "cuda"
    bits, most_bits = (2, 4), 10.5  # of pairs that are compiled by default; heads are padded to 64 channels

    def exact(self):
        return squat.Cache(self.config, bits=16, coding="plain", threads=1)

    def test_steps_wait_for_nothing(self):
        """Over packed pages and padding, in a stream of their own."""
        ids, mask = (x.cuda() for x in prompt())
        cache, stream = self.small(), torch.cuda.Stream()
        grown = torch.nn.functional.pad(mask, (0, 300), value=1)
        self.addCleanup(torch.cuda.set_sync_debug_mode, "default")
        with torch.no_grad(), torch.cuda.stream(stream):
            for i in range(200):
                if i == 195:
                    stream.synchronize()
                    torch.cuda.set_sync_debug_mode("error")
                    torch.cuda._sleep(1 << 31)  # clock cycles, about a second
                seen = grown[:, : mask.shape[1] + i]
                positions = (mask.sum(-1, keepdim=True) + i - 1) if i else None
                self.model(ids if i == 0 else ids[:, :1], attention_mask=seen, position_ids=positions, cache=cache)
            self.assertFalse(stream.query())
        torch.cuda.set_sync_debug_mode("default")
        self.assertGreater(cache.memory()["packed_tokens"], 0)

    def test_captured_steps_are_steps(self):
        """Of few bits, two sequences and a window; between them the cache learns, is cut, forked, asked and saved."""
        for config, bits in ((self.config, 2), (CONFIGS["mistral"], 4)):
            model = model_of(config).cuda()
            model.set_attn_implementation("squat")
            ids = torch.randint(2, 200, (2, 900), generator=torch.Generator().manual_seed(2)).cuda()

            def run(steps):
                cache = squat.Cache(config, bits, page_tokens=32, residual=32, statistics_tokens=256, threads=1)
                logits, forks = [], []
                with torch.no_grad(), steps:
                    model(ids[:, :40], cache=cache)
                    for at in range(40, 880):
                        if at % 200 == 0:
                            forks.append(cache.fork())
                        if at == 500:
                            cache.crop(-3)
                        if at == 610:
                            logits.append(model(ids[:, at : at + 5], cache=cache).logits[:, -1])
                        logits.append(model(input_ids=ids[:, at : at + 1], cache=cache).logits[:, -1])
                    lengths = [fork.get_seq_length() for fork in forks]
                cache.check()
                with tempfile.TemporaryDirectory() as folder:
                    path = pathlib.Path(folder, "cache")
                    cache.save(path)
                    return torch.stack(logits), lengths, cache.memory(), path.read_bytes()

            expected = run(contextlib.nullcontext())
            with replays() as replayed:
                found = run(squat.captured_steps(model))
            self.assertGreater(len(replayed), 600)
            self.assertLess(len(set(map(id, replayed))), 12)
            self.assertLess(((found[0] - expected[0]).norm() / expected[0].norm()).item(), 1e-3)
            self.assertEqual(found[1:3], expected[1:3])
            self.assertEqual(len(found[3]), len(expected[3]))

    def test_takes_memory_that_torch_keeps(self):
        """Of 64 sequences, which need more than what is free to others."""
        torch.cuda.empty_cache()
        free, block = torch.cuda.mem_get_info()[0] - (32 << 20), 1 << 28
        kept = [torch.empty(min(block, free - at), dtype=torch.uint8, device="cuda") for at in range(0, free, block)]
        del kept
        cache = squat.Cache(self.config, bits=16, coding="plain", threads=1)
        self.assertTrue(self.logits(cache, self.ids.repeat(64, 1)).isfinite().all())
        self.assertGreater(cache.memory()["total_bytes"], 32 << 20)

    def test_is_where_it_was_made(self):
        cache = self.small()
        self.logits(cache, self.ids)
        with self.assertRaisesRegex(squat.Error, "q is on the CPU; the cache is on cuda:0"):
            self.model.cpu()
            self.logits(cache, self.ids.cpu())


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    torch.set_num_threads(1)
    unittest.main()
