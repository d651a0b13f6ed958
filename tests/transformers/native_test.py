"""squat.ModelCache with NumPy, and on a GPU with PyTorch: attention is that of NumPy, and errors say what is wrong.

usage: native_test.py [unittest's arguments]
"""

import importlib.util
import unittest

import numpy as np
import squat
from squat import _native

WITHOUT_GPU = None if _native.has_cuda else "this build of squat-kv is for the CPU alone"
if importlib.util.find_spec("torch"):
    import torch

    if not torch.cuda.is_available():
        WITHOUT_GPU = "torch sees no GPU"
else:
    WITHOUT_GPU = "torch, which brings arrays to the GPU, is not there"

HEADS, KV_HEADS, CHANNELS = 4, 2, 40


def rows(tokens, heads, seed):
    return np.random.default_rng(seed).standard_normal((tokens, heads, CHANNELS), dtype=np.float32)


def make(bits=16, device="cpu", **options):
    return squat.ModelCache(2, [squat.LayerGroup([0, 1], query_heads=HEADS, kv_heads=KV_HEADS, head_dim=CHANNELS,
                                                 key_bits=bits, value_bits=bits, **options)], threads=1, device=device)


def attention(q, k, v):
    """Of queries that stand at the last positions. Also the logarithms of sums."""
    k, v = (np.repeat(x.astype(np.float64), HEADS // KV_HEADS, 1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) / np.sqrt(CHANNELS)
    past = k.shape[0] - q.shape[0]
    scores[:, np.arange(q.shape[0])[:, None] + past < np.arange(k.shape[0])] = -np.inf
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - most)
    sums = weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights / sums, v), (most + np.log(sums))[..., 0].T


class Native(unittest.TestCase):
    device = "cpu"
    tolerance = 4e-3  # keys and values are rounded to half

    def make(self, *bits, **options):
        return make(*bits, device=self.device, **options)

    def put(self, array):
        return array

    def get(self, array):
        return array

    def test_attends(self):
        cache = self.make()
        sequences = [cache.add_sequence(), cache.add_sequence()]
        held = [(rows(0, KV_HEADS, 0),) * 2] * 2
        for piece, lengths in enumerate([(50, 3), (1, 1), (7, 200), (1, 1)]):
            count = sum(lengths)
            q, k, v = rows(count, HEADS, piece), rows(count, KV_HEADS, 9 + piece), rows(count, KV_HEADS, 20 + piece)
            out, lse = self.put(np.empty_like(q)), self.put(np.empty((count, HEADS), np.float32))
            batch = [(s, n, -1) for s, n in zip(sequences, lengths)]
            cache.attend(batch, 1, *map(self.put, (q, k, v)), out=out, lse=lse)
            first = 0
            for i, n in enumerate(lengths):
                part = slice(first, first + n)
                held[i] = tuple(np.concatenate(pair) for pair in zip(held[i], (k[part], v[part])))
                expected, sums = attention(q[part], *held[i])
                np.testing.assert_allclose(self.get(out)[part], expected, atol=self.tolerance)
                np.testing.assert_allclose(self.get(lse)[part], sums, atol=self.tolerance)
                first += n
        self.assertEqual([cache.length(s, 1) for s in sequences], [59, 205])
        cache.check()

    def test_a_batch_serves_many_calls(self):
        cache = self.make()
        sequence = cache.add_sequence()
        batch = squat.Batch([(sequence, 2, 1)])
        k = self.put(rows(3, KV_HEADS, 1))
        for layer in (0, 1, 0):
            cache.append(batch, layer, k, k)
        self.assertEqual([cache.length(sequence, layer) for layer in (0, 1)], [4, 2])

    def test_packs(self):
        cache = self.make(2, page_tokens=32, residual=32, statistics_tokens=64)
        sequence = cache.add_sequence()
        q, k, v = rows(400, HEADS, 1), rows(400, KV_HEADS, 2), rows(400, KV_HEADS, 3)
        for layer in (0, 1):
            cache.append([(sequence, 400, -1)], layer, self.put(k), self.put(v), q=self.put(q))
        self.assertGreater(cache.memory()["packed_tokens"], 600)
        other = cache.load(cache.save(sequence))
        found = []
        for which in (sequence, other):
            keys, values = self.put(np.empty_like(k)), self.put(np.empty_like(v))
            cache.dequantize(which, 0, k=keys, v=values)
            found.append((self.get(keys), self.get(values)))
        np.testing.assert_array_equal(found[0], found[1])
        self.assertLess(np.linalg.norm(found[0][1] - v) / np.linalg.norm(v), 0.5)
        child = cache.fork(sequence, 100)
        cache.remove_sequence(sequence)
        self.assertEqual(cache.length(child), 100)

    def test_drafts(self):
        cache = self.make()
        sequence = cache.add_sequence()
        q, k, v = rows(12, HEADS, 1), rows(12, KV_HEADS, 2), rows(12, KV_HEADS, 3)
        cache.append([(sequence, 10, -1)], 0, self.put(k[:10]), self.put(v[:10]))
        out = self.put(np.empty_like(q[10:]))
        drafted = (self.put(x[10:]) for x in (q, k, v))
        cache.draft([(sequence, 2, -1)], 0, *drafted, out=out, parents=[-1, 0])
        np.testing.assert_allclose(self.get(out), attention(q[10:], k, v)[0], atol=self.tolerance)
        self.assertEqual(cache.length(sequence, 0), 10)

    def test_says_what_is_wrong(self):
        cache = self.make()
        sequence = cache.add_sequence()
        q, k, out = (self.put(rows(1, heads, heads)) for heads in (HEADS, KV_HEADS, HEADS))
        doubles, halves = self.put(rows(1, HEADS, 1).astype(np.float64)), self.put(rows(1, KV_HEADS, 1).astype(np.float16))
        apart = self.put(np.repeat(rows(1, HEADS, 1), 2, 2))[..., ::2]
        batch = [(sequence, 1, -1)]
        for call, words in (
            (lambda: cache.attend([(1 << 40, 1, -1)], 0, q, k, k, out=out), "sequence"),
            (lambda: cache.attend(batch, 2, q, k, k, out=out), "layer"),
            (lambda: cache.attend(batch, 0, doubles, k, k, out=out), "float64"),
            (lambda: cache.attend(batch, 0, q, halves, k, out=out), "k has elements of float16"),
            (lambda: cache.attend(batch, 0, q, k, out=out), "k and v go together"),
            (lambda: cache.attend(batch, 0, apart, k, k, out=out), "contiguous"),
            (lambda: cache.attend(batch, 0, q, k * np.nan, k, out=out), "finite"),
            (lambda: cache.load(b"no snapshot"), "snapshot"),
            (lambda: self.make(5), "bits"),
            (lambda: self.make(2, coding="best"), "plain"),
            (lambda: self.make(2, sinks="four"), "sinks"),
            (lambda: self.make(2, residuals=3), "residuals"),
            (lambda: make(device="tpu"), "tpu"),
        ):
            with self.assertRaisesRegex(squat.Error, words):
                call()
        self.assertEqual(cache.length(sequence, 0), 0)
        with self.assertRaises(TypeError):
            cache.attend(batch, 0, q[0], k, k, out=out)


@unittest.skipIf(WITHOUT_GPU, WITHOUT_GPU)
class NativeOnGpu(Native):
    device = "cuda"
    tolerance = 8e-3  # queries and weights are rounded to half, too, for the matrix units

    def put(self, array):
        return torch.from_numpy(array).cuda()

    def get(self, array):
        return array.cpu().numpy()

    def test_a_step_follows_its_stream_and_waits_for_nothing(self):
        cache, stream = self.make(), torch.cuda.Stream()
        batch = squat.Batch([(cache.add_sequence(), 1, -1)])
        q, k, v = (rows(30, heads, seed) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS)))
        given = [self.put(x) for x in (q, k, v)]
        token = [torch.zeros_like(x[:1]) for x in given]
        out = torch.empty_like(token[0])
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for i in range(30):
                if i == 29:
                    torch.cuda._sleep(1 << 28)  # clock cycles, more than 0.1 s
                for to, of in zip(token, given):
                    to.copy_(of[i : i + 1])
                cache.attend(batch, 0, *token, out=out, stream=stream.cuda_stream)
            self.assertFalse(stream.query())
        stream.synchronize()
        np.testing.assert_allclose(self.get(out), attention(q[29:], k, v)[0], atol=self.tolerance)

    def test_says_what_is_elsewhere(self):
        cache = self.make()
        batch = [(cache.add_sequence(), 1, -1)]
        q, k = rows(1, HEADS, 1), rows(1, KV_HEADS, 2)
        out, lse = self.put(q), np.empty((1, HEADS), np.float32)
        for call, words in (
            (lambda: cache.attend(batch, 0, q, self.put(k), self.put(k), out=out), "q is on the CPU; the cache is on cuda:0"),
            (lambda: cache.attend(batch, 0, self.put(q), self.put(k), k, out=out), "v is on the CPU"),
            (lambda: cache.attend(batch, 0, self.put(q), self.put(k), self.put(k), out=out, lse=lse), "lse is on the CPU"),
            (lambda: make().append([(0, 1, -1)], 0, self.put(k), self.put(k)), "k is on cuda:0; the cache is on the CPU"),
            (lambda: make(device="cuda:77"), "current one, cuda:0"),
            (lambda: squat.ModelCache(1, [squat.LayerGroup([0], query_heads=1, kv_heads=1, head_dim=64)], exact_rows="float32", device="cuda"),
             "exact rows of float32; there are some for head_dim 64"),
        ):  # fmt: skip
            with self.assertRaisesRegex(squat.Error, words):
                call()


if __name__ == "__main__":
    unittest.main()
