"""squat.ModelCache with NumPy: attention is that of NumPy, and errors say what is wrong. usage: native_test.py"""

import unittest

import numpy as np
import squat

HEADS, KV_HEADS, CHANNELS = 4, 2, 40


def rows(tokens, heads, seed):
    return np.random.default_rng(seed).standard_normal((tokens, heads, CHANNELS), dtype=np.float32)


def make(bits=16, **options):
    return squat.ModelCache(2, [squat.LayerGroup([0, 1], query_heads=HEADS, kv_heads=KV_HEADS, head_dim=CHANNELS,
                                                 key_bits=bits, value_bits=bits, **options)], threads=1)


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
    def test_attends(self):
        cache = make()
        sequences = [cache.add_sequence(), cache.add_sequence()]
        held = [(rows(0, KV_HEADS, 0),) * 2] * 2
        for piece, lengths in enumerate([(50, 3), (1, 1), (7, 200)]):
            count = sum(lengths)
            q, k, v = rows(count, HEADS, piece), rows(count, KV_HEADS, 9 + piece), rows(count, KV_HEADS, 20 + piece)
            out, lse = np.empty_like(q), np.empty((count, HEADS), np.float32)
            cache.attend([(s, n, -1) for s, n in zip(sequences, lengths)], 1, q, k, v, out=out, lse=lse)
            first = 0
            for i, n in enumerate(lengths):
                part = slice(first, first + n)
                held[i] = tuple(np.concatenate(pair) for pair in zip(held[i], (k[part], v[part])))
                expected, sums = attention(q[part], *held[i])
                np.testing.assert_allclose(out[part], expected, atol=4e-3)
                np.testing.assert_allclose(lse[part], sums, atol=4e-3)
                first += n
        self.assertEqual([cache.length(s, 1) for s in sequences], [58, 204])

    def test_packs(self):
        cache = make(2, page_tokens=32, residual=32, statistics_tokens=64)
        sequence = cache.add_sequence()
        q, k, v = rows(400, HEADS, 1), rows(400, KV_HEADS, 2), rows(400, KV_HEADS, 3)
        for layer in (0, 1):
            cache.append([(sequence, 400, -1)], layer, k, v, q=q)
        self.assertGreater(cache.memory()["packed_tokens"], 600)
        other = cache.load(cache.save(sequence))
        found = [np.empty_like(k), np.empty_like(v)], [np.empty_like(k), np.empty_like(v)]
        for which, (keys, values) in zip((sequence, other), found):
            cache.dequantize(which, 0, k=keys, v=values)
        np.testing.assert_array_equal(found[0], found[1])
        self.assertLess(np.linalg.norm(found[0][1] - v) / np.linalg.norm(v), 0.5)
        child = cache.fork(sequence, 100)
        cache.remove_sequence(sequence)
        self.assertEqual(cache.length(child), 100)

    def test_drafts(self):
        cache = make()
        sequence = cache.add_sequence()
        q, k, v = rows(12, HEADS, 1), rows(12, KV_HEADS, 2), rows(12, KV_HEADS, 3)
        cache.append([(sequence, 10, -1)], 0, k[:10], v[:10])
        out = np.empty_like(q[10:])
        cache.draft([(sequence, 2, -1)], 0, q[10:], k[10:], v[10:], out=out, parents=[-1, 0])
        np.testing.assert_allclose(out, attention(q[10:], k, v)[0], atol=4e-3)
        self.assertEqual(cache.length(sequence, 0), 10)

    def test_says_what_is_wrong(self):
        cache = make()
        sequence = cache.add_sequence()
        q, k, out = rows(1, HEADS, 1), rows(1, KV_HEADS, 2), rows(1, HEADS, 3)
        batch = [(sequence, 1, -1)]
        for call, words in (
            (lambda: cache.attend([(1 << 40, 1, -1)], 0, q, k, k, out=out), "sequence"),
            (lambda: cache.attend(batch, 2, q, k, k, out=out), "layer"),
            (lambda: cache.attend(batch, 0, q.astype(np.float64), k, k, out=out), "float64"),
            (lambda: cache.attend(batch, 0, q, k.astype(np.float16), k, out=out), "k has elements of float16"),
            (lambda: cache.attend(batch, 0, q, k, out=out), "k and v go together"),
            (lambda: cache.attend(batch, 0, np.repeat(q, 2, 2)[..., ::2], k, k, out=out), "contiguous"),
            (lambda: cache.attend(batch, 0, q, k * np.nan, k, out=out), "finite"),
            (lambda: cache.load(b"no snapshot"), "snapshot"),
            (lambda: make(5), "bits"),
            (lambda: make(2, coding="best"), "plain"),
            (lambda: make(2, sinks="four"), "sinks"),
            (lambda: make(2, residuals=3), "residuals"),
        ):
            with self.assertRaisesRegex(squat.Error, words):
                call()
        self.assertEqual(cache.length(sequence, 0), 0)
        with self.assertRaises(TypeError):
            cache.attend(batch, 0, q[0], k, k, out=out)


if __name__ == "__main__":
    unittest.main()
