#!/usr/bin/env python3
"""Every key and value coding of the library in plain float64 NumPy, for one KV head at a time: the oracle that
tests/cache/oracle_test.cpp copies its numbers from. Slow and plain on purpose.

  python3 coding.py                       the tables for generated tensors and for those drawn after a model's
  python3 coding.py DIRECTORY             the tables for a model's tensors, files layerL_{q,k,v}_TOKENSxHEADSxDIM_f16.bin
  python3 coding.py --moments DIRECTORY   model_moments.inc, what tensors are drawn from, of that model's tensors

Scores are the KL divergence of attention probabilities and the relative error of the attention output, over the
queries at positions >= PROMPT, each seeing SINKS exact tokens, packed pages, and an exact window.
"""
import math
import pathlib
import re
import sys
import numpy as np

PROMPT, SINKS, WINDOW = 512, 4, 64
LAYERS = 2, 14, 27          # of the model


def f16(x):
    return np.asarray(x, dtype=np.float16).astype(np.float64)


# ---- rotary embedding, interleaved pairs ---------------------------------------------------------------------------
def rotate(x, position, base=100000.0):
    """x [n, d]; position [n] (may be negative)."""
    d = x.shape[-1]
    angle = np.asarray(position, dtype=np.float64)[:, None] * base ** (-np.arange(0, d, 2) / d)
    c, s = np.cos(angle), np.sin(angle)
    out = np.empty_like(x)
    out[:, 0::2] = x[:, 0::2] * c - x[:, 1::2] * s
    out[:, 1::2] = x[:, 0::2] * s + x[:, 1::2] * c
    return out


# ---- one group of values -> codes ----------------------------------------------------------------------------------
CLIPS = (1.0, .95, .9, .85, .8, .75, .7, .65, .6, .55, .5)


def affine(x, bits, clips=(1.0,), unbiased=False):
    """Asymmetric codes along axis 0 of x [n, channels]: x ~ zero + scale * code, zero and scale in float16.

    clips: fractions of the min-max range tried, least squared error wins. unbiased: rescale about the mean so that the
    error is orthogonal to the input (sum dx * dq = sum dx * dx); plain least squares shrinks large values, and
    attention weighs exactly those."""
    top = 2 ** bits - 1
    lo, hi = x.min(0), x.max(0)
    best = None
    for c in clips:
        mid, half = (lo + hi) / 2, (hi - lo) / 2 * c
        zero, scale = f16(mid - half), np.maximum(f16(2 * half / top), 6e-8)
        code = np.clip(np.round((x - zero) / scale), 0, top)
        error = ((zero + scale * code - x) ** 2).sum(0)
        if best is None:
            best = [error, zero, scale, code]
        else:
            w = error < best[0]
            best = [np.where(w, error, best[0]), np.where(w, zero, best[1]), np.where(w, scale, best[2]), np.where(w, code, best[3])]
    _, zero, scale, code = best
    if unbiased:
        q = zero + scale * code
        mx, mq = x.mean(0), q.mean(0)
        dx, dq = x - mx, q - mq
        gain = np.clip((dx * dx).sum(0) / np.maximum((dx * dq).sum(0), 1e-12), 1, 2)
        zero, scale = f16(mx + gain * (zero - mq)), f16(gain * scale)
    return zero + scale * code


def symmetric(x, bits):
    """Mid-rise codes along axis 1 of x [n, d], one float16 scale a row, made unbiased by the gain <x,x>/<x,q>."""
    step = {1: 1.5958, 2: .9957, 3: .586, 4: .3352}[bits]          # optimal uniform step of a unit Gaussian
    levels = 2 ** bits
    rms = np.sqrt((x * x).mean(1, keepdims=True)) + 1e-12
    best = None
    for f in (.8, .9, 1., 1.1, 1.25, 1.4):
        scale = rms * step * f
        level = np.clip(np.floor(x / scale) + .5, -(levels - 1) / 2, (levels - 1) / 2)
        error = ((scale * level - x) ** 2).sum(1, keepdims=True)
        if best is None:
            best = [error, scale, level]
        else:
            w = error < best[0]
            best = [np.where(w, error, best[0]), np.where(w, scale, best[1]), np.where(w, level, best[2])]
    _, scale, level = best
    gain = np.clip((x * x).sum(1, keepdims=True) / np.maximum((x * scale * level).sum(1, keepdims=True), 1e-12), .5, 2)
    return f16(scale * gain) * level


# ---- trellis codes (include/squat/coding/trellis.hpp) -----------------------------------------------------------------
UNIT, MIDDLE, SEAM = 16, 2, 32
# Bits of a window that an element moves it on by, the deviation of the levels' Gaussians and their error, levels by index
TRELLIS = {1: (1, 16.621, .39, [12, -6, -10, 16, -16, 5, 4, -29, 7, -14, -15, 8, -4, 29, 16, -5]),
           2: (2, 14.04, .081, [6, 19, -4, -16, -11, 30, 10, 0, -6, -20, 17, 4, 0, 11, -30, -10]),
           3: (2, 11.856, .0202, [20, 6, -6, 2, 2, 13, 7, -15, 10, 5, -13, -24, 24, -20, 0, 4,
                                  -11, -2, 11, -17, -31, 31, -9, -3, 1, -7, -3, 17, 15, -5, 9, -10])}
WINDOWS = np.arange(256)
PARITY = np.array([bin(i).count("1") % 2 for i in range(16)])
INDEX = WINDOWS % 16 ^ sum(PARITY[WINDOWS // 16 & mask] << bit for bit, mask in enumerate((5, 10, 1, 2)))


def trellis_levels(codes, bits):
    """The levels of circular rows of codes [rows, n]."""
    step, _, _, levels = TRELLIS[bits]
    code, window = codes % 2 ** step, np.zeros_like(codes)
    for back in range(8 // step):
        window |= np.roll(code, back, 1) << step * back
    return np.array(levels)[INDEX[window] + 16 * (codes >> 2)]


def trellis_search(x, bits):
    """Codes [rows, n] of circular rows x of levels: Viterbi's algorithm from the state that a search around the seam says."""
    step, _, _, levels = TRELLIS[bits]
    (rows, n), states, levels = x.shape, 256 >> step, np.array(levels, dtype=float)
    top = np.arange(2 ** step)[:, None] * (states >> step)
    before, window = top + np.arange(states) // 2 ** step, np.arange(2 ** step)[:, None] * states + np.arange(states)

    def walk(cost, first, steps):
        decisions = []
        for i in range(steps):
            near = ((x[:, (first + i) % n, None] - levels) ** 2).reshape(rows, -1, 16).min(1)
            sums = cost[:, before] + near[:, INDEX[window]]
            decisions.append(sums.argmin(1))
            cost = sums.min(1)
        return cost, decisions

    def states_before(state, decisions):
        path = [state]
        for decided in reversed(decisions):
            path.append(decided[np.arange(rows), path[-1]] * (states >> step) + path[-1] // 2 ** step)
        return path[::-1]

    cost, decisions = walk(np.zeros((rows, states)), -SEAM % n, 2 * SEAM)
    seam = states_before(cost.argmin(1), decisions)[SEAM]
    _, decisions = walk(np.where(np.arange(states) == seam[:, None], 0, np.inf), 0, n)
    codes = np.stack(states_before(seam, decisions)[1:], 1) % 2 ** step
    if bits == 3:
        low, high = trellis_levels(codes, 3), trellis_levels(codes + 4, 3)
        codes = codes + 4 * (abs(x - high) < abs(x - low))
    return codes


def trellis(x, bits, about_mean):
    """Trellis codes along axis 1 of x [rows, n]: x ~ zero + scale * (MIDDLE + level / UNIT), zero 0 and MIDDLE 0 unless about the mean.

    Rows are searched at the scale of Gaussians; those that err a fifth more than these, at others too."""
    _, deviation, usual, _ = TRELLIS[bits]
    mean = x.mean(1, keepdims=True) * about_mean
    dx = x - mean
    squares = (dx * dx).sum(1, keepdims=True)
    rms = np.sqrt(squares / x.shape[1]) + 1e-30
    best = None
    for factor in 1, .75, 1.35, 2:
        level = trellis_levels(trellis_search(dx / (factor * rms) * deviation, bits), bits)
        products = (dx * level).sum(1, keepdims=True)
        gain = np.where(products > 0, np.minimum(squares / np.maximum(products, 1e-30), 2 * factor * rms / deviation), 0)
        scale = f16(UNIT * gain)
        zero = f16(mean - scale * (MIDDLE + level.mean(1, keepdims=True) / UNIT)) + MIDDLE * scale if about_mean else 0
        coded = zero + scale * level / UNIT
        error = ((coded - x) ** 2).sum(1, keepdims=True)
        if best is None:
            best, odd = [error, coded], error > 1.2 * usual * squares
        else:
            w = odd & (error < best[0])
            best = [np.where(w, error, best[0]), np.where(w, coded, best[1])]
    return best[1]


def hadamard(n):
    """D H / sqrt(n): pairs of a channel's bits say which signs D turns; of an odd number of bits the lowest three."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    channel = np.arange(n)
    odd = n.bit_length() % 2 == 0
    pairs = channel >> 3 if odd else channel
    turned = (channel & 7 == 7) & odd
    while pairs.any():
        turned, pairs = turned ^ (pairs & 3 == 3), pairs >> 2
    return np.where(turned, -1, 1)[:, None] * h / math.sqrt(n)


def coded_values(v, bits, learnt_from=None, group=128, coder=symmetric):
    """Values of tokens behind the sinks, rotated, a page at a time: about the prompt's mean where rows are nearer to it
    than to 0, and none much farther."""
    H = hadamard(v.shape[1])
    mean = ((v if learnt_from is None else learnt_from)[:PROMPT - SINKS] @ H).mean(0)
    coded = []
    for t in range(0, len(v), group):
        x = v[t:t + group] @ H
        own, left = (x ** 2).sum(1), ((x - mean) ** 2).sum(1)
        off = mean if (left <= 1.25 * own).all() and left.sum() < own.sum() else 0
        coded.append((coder(x - off, bits) + off) @ H.T)
    return np.concatenate(coded)


def int8_rows(x):
    """Rows of a tail: rotated, in steps of their largest magnitude over 127, float16."""
    H = hadamard(x.shape[1])
    y = x @ H
    step = f16(np.abs(y).max(1, keepdims=True) / 127)
    return np.clip(np.round(y / step), -127, 127) * step @ H.T


# ---- keys ----------------------------------------------------------------------------------------------------------
def feedback(P):
    """F of the rounding order 0..d-1: P = L^T L, L lower (reverse Cholesky); F = diag(L)^-1 strictly_lower(L)."""
    U = np.linalg.cholesky(P[::-1, ::-1])[::-1, ::-1]     # P = U U^T, U upper
    L = U.T
    return np.tril(L, -1) / np.diag(L)[:, None]


def plain_keys(k, bits, group, **fit):
    return np.concatenate([affine(k[t:t + group], bits, **fit) for t in range(0, len(k), group)])


def orthogonal_keys(k, q, bits, group, eps=1.0, order=True, reach=None, **fit):
    """SQuat with the normalised full-rank metric P = C / mean diag(C) + eps I and block size 1."""
    d = k.shape[1]
    C = q.T @ q
    P = C / (np.trace(C) / d) + eps * np.eye(d)
    if reach is None:
        reach = np.mean([np.ptp(k[t:t + group], axis=0) for t in range(0, PROMPT - SINKS - group + 1, group)], axis=0)
    perm = np.argsort(-reach * np.sqrt(np.diag(P))) if order else np.arange(d)
    F = feedback(P[np.ix_(perm, perm)])
    out = np.empty_like(k)
    for t in range(0, len(k), group):
        x, e = k[t:t + group][:, perm], np.zeros((min(group, len(k) - t), d))
        for i in range(d):
            q_i = affine(x[:, i:i + 1] - e[:, :i] @ F[i, :i, None], bits, **fit)
            e[:, i] = q_i[:, 0] - x[:, i]
        out[t:t + group, perm] = x + e
    return out


def published_orthogonal_keys(k, q, bits, group, rank, lam, block):
    """SQuat with the published hyper-parameters: rank-r subspace, lambda, block of channels without feedback inside."""
    _, s, vt = np.linalg.svd(q, full_matrices=False)
    Q = s[:rank, None] * vt[:rank]
    d = k.shape[1]
    P = np.eye(d) + lam * Q.T @ Q
    L = np.linalg.cholesky(P[::-1, ::-1])[::-1, ::-1].T
    out = np.empty_like(k)
    for t in range(0, len(k), group):
        x, e = k[t:t + group], np.zeros_like(k[t:t + group])
        for b in range(0, d, block):
            M = np.linalg.solve(L[b:b + block, b:b + block], L[b:b + block, :b])
            e[:, b:b + block] = _minmax(x[:, b:b + block] - e[:, :b] @ M.T, bits) - x[:, b:b + block]
        out[t:t + group] = x + e
    return out


def _minmax(x, bits):
    lo, hi = x.min(0), x.max(0)
    scale = np.where(hi > lo, (hi - lo) / (2 ** bits - 1), 1e-8)
    return np.clip(np.round((x - lo) / scale), 0, 2 ** bits - 1) * scale + lo


DISTORTION = {8: 5e-5, 4: .0115, 2: .125, 0: 1.}         # squared error of a unit-variance channel coded at each width


def class_sizes(variance, bits):
    """Reverse water-filling for one KV head: how many runs of 8 channels (16 from d = 128 on; variance falling) get 8, 4, 2 and 0
    bits, so that the widths average `bits` and the predicted error is least."""
    d, best = len(variance), None
    parts = d // (8 if d < 128 else 16)
    for n8 in range(parts + 1):
        for n4 in range(parts + 1 - n8):
            for n2 in range(parts + 1 - n8 - n4):
                if 8 * n8 + 4 * n4 + 2 * n2 != bits * parts:
                    continue
                sizes = {8: n8, 4: n4, 2: n2, 0: parts - n8 - n4 - n2}
                error = variance @ np.concatenate([np.full(n * d // parts, DISTORTION[w]) for w, n in sizes.items()])
                if best is None or error < best[0]:
                    best = error, sizes
    return {w: n * d // parts for w, n in best[1].items()}


def subspace_basis(C, S, eps=.1):
    """Joint eigenbasis of query moments C and key covariance S: y = A k, q' = A^-T q, so q'.y = q.k, the error metric is
    the identity and the coordinates of y are uncorrelated with falling variance."""
    d = len(C)
    C = C / (np.trace(C) / d) + eps * np.eye(d)
    L = np.linalg.cholesky(C)
    variance, W = np.linalg.eigh(L.T @ S @ L)
    W = W[:, ::-1]
    return W.T @ L.T, np.linalg.solve(L.T, W), np.maximum(variance[::-1], 0)     # A, A^-1, variance of each coordinate


def kept_basis(inverse, metric, bits):
    """A and A^-1 as they are kept for keys of up to 2 bits: A^-T in bytes, evened out by the metric's diagonal, A its inverse
    transpose. Words for more bits err far less."""
    if bits > 2:
        return np.linalg.inv(inverse), inverse
    widths = np.sqrt(metric)
    even = inverse.T * widths
    scale = np.abs(even).max(1, keepdims=True) / 127.5
    inverse = ((np.clip(np.round(even / scale + 127.5), 0, 255) - 127.5) * scale / widths).T
    return np.linalg.inv(inverse), inverse


def subspace_keys(k, q, bits, group, eps=.1, codes="scalar", learnt_from=None):
    """A page that the basis suits less than plain coding (error in the queries' metric) is coded plainly, and with scalar
    codes in the basis where trellis codes err more. learnt_from: the keys as they came, where k is what a tail has made of
    them."""
    prompt, d = (k if learnt_from is None else learnt_from)[:PROMPT - SINKS], k.shape[1]
    C = q.T @ q
    _, inverse, variance = subspace_basis(C, np.cov(prompt.T, bias=True), eps)
    metric = np.diag(C) / (np.trace(C) / d) + eps
    A, inverse = kept_basis(inverse, metric, bits)
    sizes, out = class_sizes(variance, bits), np.empty_like(k)
    for t in range(0, len(k), group):
        page = k[t:t + group]
        y, c0 = page @ A.T, 0
        z = np.empty_like(y)
        for width, size in sizes.items():
            c1 = c0 + size
            if size == 0:
                continue
            if width == 0:
                z[:, c0:c1] = f16(y[:, c0:c1].mean(0))
            else:
                z[:, c0:c1] = affine(y[:, c0:c1], width, CLIPS if width == 2 else (1.0,), unbiased=True)
            c0 = c1
        if codes == "trellis":
            c0, scalar = 0, z.copy()
            for width, size in sizes.items():
                if width in TRELLIS and size:
                    z[:, c0:c0 + size] = trellis(y[:, c0:c0 + size].T, width, True).T
                c0 += size
            if ((scalar - y) ** 2).sum() <= ((z - y) ** 2).sum():
                z = scalar
        plain = affine(page, bits)
        basis_wins = ((z - y) ** 2).sum() <= (((plain - page) ** 2).sum(0) * metric).sum()
        out[t:t + group] = z @ inverse.T if basis_wins else plain
    return out


def tile_queries(q_pre, frame=256):
    """Each prompt query as seen from three tiles behind it, a list."""
    p = np.arange(PROMPT)
    return [rotate(q_pre[:PROMPT], p - (p * share).astype(int) // frame * frame) for share in (.1, .5, .9)]


def in_tile_frame(k_pre, q_pre, coder, frame=256, remove_mean=True, learnt_from=None):
    """Code keys in the rotary frame of their own tile (a run of pages, `frame` tokens): position within the tile instead of
    absolute position.

    A rotary embedding turns the query subspace with the distance; inside one tile it hardly moves, so one basis serves
    the whole context. Scores use the query turned back by the tile's first position."""
    n = len(k_pre)
    row = np.arange(n) % frame
    start = np.arange(n) - row + SINKS
    came = k_pre if learnt_from is None else learnt_from
    mean = came[:PROMPT - SINKS].mean(0, keepdims=True) * remove_mean
    turned_mean = rotate(np.repeat(mean, n, 0), row)
    qs = [tile for heads in q_pre for tile in tile_queries(heads, frame)]
    in_frame = lambda k: rotate(k, row) - turned_mean
    learning = {} if learnt_from is None else dict(learnt_from=in_frame(learnt_from))
    coded = coder(in_frame(k_pre), np.concatenate(qs), **learning)
    return rotate(coded + turned_mean, start)


# ---- bits shared out among the KV heads of a layer -----------------------------------------------------------------
AFFINE = {8: 5e-5, 4: .0115, 3: .046, 2: .125, 1: .60, 0: 1.}      # squared errors of unit variance at each width
SYMMETRIC = {1: .363, 2: .119, 3: .0374, 4: .0115}


def attention_weights(q_rot, k_rot, v):
    """What independent errors in far keys and values do to the outputs of prompt queries: key weight w and value weight e of
    each, and whether it has far tokens: behind the sinks and WINDOW or more back. q_rot: one head."""
    t, s = np.arange(PROMPT), np.arange(PROMPT)
    scores = q_rot[:PROMPT] @ k_rot[:PROMPT].T / math.sqrt(k_rot.shape[1])
    scores = np.where(s <= t[:, None], scores, -np.inf)
    a = np.exp(scores - scores.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    o = a @ v[:PROMPT]
    far = (s >= SINKS) & (s <= t[:, None] - WINDOW)
    a2 = a * a * far
    distance = ((v[None, :PROMPT] - o[:, None]) ** 2).sum(2)
    return (a2 * distance).sum(1) / k_rot.shape[1], a2 @ (v[:PROMPT] ** 2).sum(1), far.any(1)


def blocks(bits, channels):
    """64-byte blocks that keys of 16 tokens take; codes of 3 bits are planes of 2 and 1."""
    planes = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,), 0: ()}[bits]
    return sum(-(-channels * plane // 32) for plane in planes) if channels else 0


def key_choices(variance):
    """The widths of a head's channels of least error, of every number of blocks: [(blocks, error, {width: channels})]."""
    d = len(variance)
    unit = 8 if d < 128 else 16
    best = {(0, 0): (0., {})}                             # units, blocks: error, widths
    for width in (8, 4, 3, 2, 1):
        found = dict(best)
        for (u, b), (error, sizes) in best.items():
            for n in range(1, d // unit - u + 1):
                key = u + n, b + blocks(width, n * unit)
                e = error + AFFINE[width] * variance[u * unit:(u + n) * unit].sum()
                if key not in found or e < found[key][0]:
                    found[key] = e, {**sizes, width: n * unit}
        best = found
    choices = []
    for b in sorted({b for _, b in best}):
        error, sizes = min(((e + variance[u * unit:].sum(), s) for (u, bb), (e, s) in best.items() if bb == b), key=lambda x: x[0])
        if not choices or error < choices[-1][1]:
            choices.append((b, error, {**sizes, 0: d - sum(sizes.values())}))
    return choices


def choose(items, budget):
    """Of every item, a list of (cost, error), the index of one choice: least error in all at costs up to budget."""
    least = {0: (0., ())}
    for choices in items:
        found = {}
        for cost, (error, chosen) in least.items():
            for i, (c, e) in enumerate(choices):
                if cost + c <= budget and (cost + c not in found or error + e < found[cost + c][0]):
                    found[cost + c] = error + e, chosen + (i,)
        least = found
    return min(least.values())[1]


def layer_coding(k_pre, q_pre, v, bits, group=128, frame=256, eps=.1):
    """Keys and values of all KV heads of a layer, lists of a head each, their bits shared out: coded keys (rotated) and values
    behind the sinks. q_pre: a list of query heads for each."""
    d, position = v[0].shape[1], np.arange(len(v[0]))
    heads, costs = [], []
    for k, qs, values in zip(k_pre, q_pre, v):
        C, all_queries, e, n = np.zeros((d, d)), np.zeros((d, d)), 0., 0
        for q in qs:
            w, of_values, far = attention_weights(rotate(q, position), rotate(k, position), values)
            e, n = e + of_values.sum(), n + far.sum()
            for turned in tile_queries(q, frame):
                C += (turned * (w / 3)[:, None]).T @ turned
                all_queries += turned.T @ turned
        C = (n * C + d * all_queries * np.trace(C) / np.trace(all_queries)) / (n + d)
        row = np.arange(len(k) - SINKS) % frame
        mean = rotate(np.repeat(k[SINKS:PROMPT].mean(0, keepdims=True), len(row), 0), row)
        x = rotate(k[SINKS:], row) - mean
        _, inverse, variance = subspace_basis(C, np.cov(x[:PROMPT - SINKS].T, bias=True), eps)
        weight, metric = 2 * np.trace(C) / d, np.diag(C) / (np.trace(C) / d) + eps
        most = (4 * bits - 4) * blocks(1, d)                # twice the bits asked for, less 4 of values
        choices = [choice for choice in key_choices(variance * weight) if choice[0] <= most]
        heads.append((x, mean, row, *kept_basis(inverse, metric, bits), metric, weight, choices, e))
        costs.append([(b * group // 16, error) for b, error, _ in heads[-1][7]])
    costs += [[(w * d * group // 512, head[8] * SYMMETRIC[w] / (1 - SYMMETRIC[w])) for w in SYMMETRIC] for head in heads]
    chosen = choose(costs, 2 * len(heads) * bits * d * group // 512)
    widths = [i + 1 for i in chosen[len(heads):]]
    value_gain = sum(costs[len(heads) + h][bits - 1][1] - costs[len(heads) + h][w - 1][1] for h, w in enumerate(widths))
    keys = [np.empty_like(head[0]) for head in heads]
    plain_pages = np.zeros(len(keys[0]), dtype=bool)
    for t in range(0, len(keys[0]), group):
        gain, plain = value_gain * min(group, len(keys[0]) - t), []
        for h, (x, _, _, A, inverse, metric, weight, choices, _) in enumerate(heads):
            page = x[t:t + group]
            y, c0 = page @ A.T, 0
            z = np.empty_like(y)
            for width, size in choices[chosen[h]][2].items():
                c1 = c0 + size
                clips = CLIPS if width == 2 else tuple(c / 2 for c in CLIPS) if width == 1 else (1.,)
                if size > 0:
                    z[:, c0:c1] = affine(y[:, c0:c1], width, clips, unbiased=True) if width else f16(y[:, c0:c1].mean(0))
                c0 = c1
            keys[h][t:t + group] = z @ inverse.T
            plain.append(affine(page, bits))
            gain += weight * ((((plain[h] - page) ** 2).sum(0) * metric).sum() - ((z - y) ** 2).sum())
        if gain < 0:
            plain_pages[t:t + group] = True
            for h in range(len(heads)):
                keys[h][t:t + group] = plain[h]
    k_hat = [rotate(coded + head[1], np.arange(len(coded)) - head[2] + SINKS) for coded, head in zip(keys, heads)]
    v_hat = [np.where(plain_pages[:, None], coded_values(x[SINKS:], bits), coded_values(x[SINKS:], w)) for x, w in zip(v, widths)]
    return k_hat, v_hat


# ---- measurement ---------------------------------------------------------------------------------------------------
def attention_error(q_heads, k, k_hat, v, v_hat, group):
    """Mean KL of attention probabilities and relative output error over queries at positions >= PROMPT."""
    n, d = k.shape
    t, i = np.arange(PROMPT, n)[:, None], np.arange(n)[None, :]
    packed_to = SINKS + np.maximum(t + 1 - SINKS - WINDOW, 0) // group * group
    packed = (i >= SINKS) & (i < packed_to)
    kl, num, den = [], 0., 0.
    for q in q_heads:
        s = q[PROMPT:] @ k.T / math.sqrt(d)
        s_hat = np.where(packed, q[PROMPT:] @ k_hat.T / math.sqrt(d), s)
        def soft(s):
            s = np.where(i <= t, s, -np.inf)
            p = np.exp(s - s.max(1, keepdims=True))
            return p / p.sum(1, keepdims=True)
        p, p_hat = soft(s), soft(s_hat)
        kl.append((p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(p_hat, 1e-300)))).sum(1).mean())
        o, o_hat = p @ v, (p_hat * packed) @ v_hat + (p_hat * ~packed) @ v
        num, den = num + ((o_hat - o) ** 2).sum(), den + (o ** 2).sum()
    return np.mean(kl), math.sqrt(num / den)


# ---- inputs --------------------------------------------------------------------------------------------------------
class Normal:
    """Near-normal numbers (sums of four uniform ones of a linear congruential generator): the same in every language."""

    def __init__(self, seed):
        self.state = seed

    def matrix(self, rows, columns):
        x = np.empty(rows * columns)
        for i in range(len(x)):
            total = 0.
            for _ in range(4):
                self.state = (self.state * 1664525 + 1013904223) & 0xffffffff
                total += self.state / 2 ** 32 - .5
            x[i] = total * math.sqrt(3)
        return x.reshape(rows, columns)


def generated(tokens=768, heads=2, d=32):
    """Two query heads that share a KV head: queries and keys of falling spectra in skew bases, keys with a bias."""
    random = Normal(7)
    fall = 1 / (1 + np.arange(d))
    q_mix, k_mix = random.matrix(d, d) * fall[:, None], random.matrix(d, d) * np.sqrt(fall)[:, None]
    bias = 2 * random.matrix(1, d)
    q = np.stack([.6 * random.matrix(tokens, d) @ q_mix for _ in range(heads)], 1)
    k = (random.matrix(tokens, d) @ k_mix + bias)[:, None]
    v = random.matrix(tokens, d)[:, None]
    return q, k, v


# A model's tensors are megabytes. What makes its keys and queries other than noise is mostly in their means and
# covariances: model_moments.inc holds those of a few heads, and tensors are drawn from them.
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def moments(directory):
    """model_moments.inc: of KV head 0 of each layer, the queries of its query heads, its keys and its values, without the
    sinks. A line is a channel: its mean, a step, and its row of the covariance's Cholesky factor in such steps, a digit
    of base 64 each, 32 for none."""
    print("// Means and covariances of a model's queries, keys and values: SmolLM2-135M-Instruct (Apache-2.0) on 1024 tokens")
    print("// of WikiText-2, KV head 0 of layers 2, 14 and 27. Written by")
    print("//   python3 tests/reference/coding.py --moments DIRECTORY")
    print("// whose moments() says what a line is.")
    for layer in LAYERS:
        q, k, v = load(directory, layer)
        for name, x in ("queries", q[SINKS:, :q.shape[1] // k.shape[1]]), ("keys", k[SINKS:, :1]), ("values", v[SINKS:, :1]):
            x = x.reshape(-1, x.shape[2])
            mix = np.linalg.cholesky(np.cov(x.T, bias=True))
            print(f"// layer {layer}, {name}")
            for i, row in enumerate(mix):
                step = float(f"{np.abs(row).max() / 31:.3g}")
                digits = "".join(DIGITS[32 + int(round(m / step))] for m in row[:i + 1])
                print(f'{{{x[:, i].mean():.4g}, {step:.3g}, "{digits}"}},')


def drawn(layer, tokens=768, heads=2):
    """Two query heads that share a KV head, with a model's means and covariances."""
    lines = re.findall(r'\{(\S+), (\S+), "(\S+)"\}', pathlib.Path(__file__).with_name("model_moments.inc").read_text())
    d = len(lines) // (3 * len(LAYERS))
    random = Normal(layer)

    def draw(tensor):
        first = (3 * LAYERS.index(layer) + tensor) * d
        mean, mix = np.empty(d), np.zeros((d, d))
        for i, (m, step, digits) in enumerate(lines[first:first + d]):
            mean[i] = float(m)
            mix[i, :i + 1] = [(DIGITS.index(digit) - 32) * float(step) for digit in digits]
        return random.matrix(tokens, d) @ mix.T + mean

    q = np.stack([draw(0) for _ in range(heads)], 1)
    return q, draw(1)[:, None], draw(2)[:, None]


def drawn_layer():
    """The drawn heads of all layers as the KV heads of one, two query heads each."""
    return [np.concatenate(x, 1) for x in zip(*(drawn(layer) for layer in LAYERS))]


def uneven(kv_heads, shared, d, tokens=640):
    """KV heads of a layer, `shared` query heads each: keys and values of later heads are larger."""
    random = Normal(11)
    fall = 1 / (1 + np.arange(d))
    q, k, v = [], [], []
    for head in range(kv_heads):
        q_mix, k_mix = random.matrix(d, d) * fall[:, None], random.matrix(d, d) * np.sqrt(fall)[:, None]
        bias = random.matrix(1, d)
        q += [(.5 + .25 * head) * random.matrix(tokens, d) @ q_mix for _ in range(shared)]
        k.append(random.matrix(tokens, d) @ k_mix + bias)
        v.append((1 + head) * random.matrix(tokens, d))
    return np.stack(q, 1), np.stack(k, 1), np.stack(v, 1)


def load(directory, layer):
    tensors = []
    for name in "qkv":
        path, = pathlib.Path(directory).glob(f"layer{layer}_{name}_*_f16.bin")
        shape = tuple(int(n) for n in path.name.split("_")[2].split("x"))
        tensors.append(np.fromfile(path, "<f2").reshape(shape).astype(float))
    return tensors


def table(title, q, k, v):
    fit = dict(clips=CLIPS, unbiased=True)
    tokens, kv_heads, d = k.shape
    shared = q.shape[1] // kv_heads
    print(f"{title:56s} attention KL   output error")
    rows = {}
    for h in range(kv_heads):
        q_pre = [q[:, shared * h + j] for j in range(shared)]
        position = np.arange(tokens)
        q_rot = [rotate(x, position) for x in q_pre]
        k_rot, kk, vv = rotate(k[:, h], position), k[SINKS:, h], v[:, h]
        stacked = np.concatenate([x[:PROMPT] for x in q_rot])
        plain_values = lambda bits: np.concatenate([affine(vv[:, c:c + 32].T, bits).T for c in range(0, d, 32)], 1)
        behind_sinks = lambda coded: np.concatenate([vv[:SINKS], coded])
        rotated_values = lambda bits, group: behind_sinks(coded_values(vv[SINKS:], bits, group=group))
        k8, v8 = rotate(int8_rows(k_rot), -position)[SINKS:], int8_rows(vv)
        int8_values = lambda bits: behind_sinks(coded_values(v8[SINKS:], bits, learnt_from=vv[SINKS:]))
        trellis_values = lambda bits: behind_sinks(coded_values(vv[SINKS:], bits, coder=lambda x, bits: trellis(x, bits, False)))
        cases = {
            "plain 2 bit, G 32 (KIVI)": (32, plain_keys(k_rot[SINKS:], 2, 32), plain_values(2)),
            "plain 4 bit, G 32 (KIVI)": (32, plain_keys(k_rot[SINKS:], 4, 32), plain_values(4)),
            "SQuat published l 1e-3, r g d/2, G 32": (32, published_orthogonal_keys(k_rot[SINKS:], stacked, 2, 32, d // 2, 1e-3, d // 2), plain_values(2)),
            "SQuat full metric, g 1, G 64": (64, orthogonal_keys(k_rot[SINKS:], stacked, 2, 64, clips=(1.0,)), rotated_values(2, 64)),
            "  with clip search and gain": (64, orthogonal_keys(k_rot[SINKS:], stacked, 2, 64, **fit), rotated_values(2, 64)),
            "  and tile frame 256": (64, in_tile_frame(kk, q_pre, lambda x, y: orthogonal_keys(x, y, 2, 64, reach=x[:PROMPT - SINKS].std(0), **fit)), rotated_values(2, 64)),
            "subspace 2 bit, G 128, absolute frame": (128, subspace_keys(k_rot[SINKS:], stacked, 2, 128), rotated_values(2, 128)),
            "subspace 2 bit, G 128, tile frame 256": (128, in_tile_frame(kk, q_pre, lambda x, y: subspace_keys(x, y, 2, 128)), rotated_values(2, 128)),
            "subspace 3 bit, G 128, tile frame 256": (128, in_tile_frame(kk, q_pre, lambda x, y: subspace_keys(x, y, 3, 128)), rotated_values(3, 128)),
            "subspace 4 bit, G 128, tile frame 256": (128, in_tile_frame(kk, q_pre, lambda x, y: subspace_keys(x, y, 4, 128)), rotated_values(4, 128)),
            "subspace 2 bit, by way of an int8 tail": (128, in_tile_frame(k8, q_pre, lambda x, y, **l: subspace_keys(x, y, 2, 128, **l), learnt_from=kk), int8_values(2)),
            "subspace 4 bit, by way of an int8 tail": (128, in_tile_frame(k8, q_pre, lambda x, y, **l: subspace_keys(x, y, 4, 128, **l), learnt_from=kk), int8_values(4)),
            "trellis 2 bit, G 128, tile frame 256": (128, in_tile_frame(kk, q_pre, lambda x, y: subspace_keys(x, y, 2, 128, codes="trellis")), trellis_values(2)),
            "trellis 3 bit, G 128, tile frame 256": (128, in_tile_frame(kk, q_pre, lambda x, y: subspace_keys(x, y, 3, 128, codes="trellis")), trellis_values(3)),
        }
        for name, (group, k_hat, v_hat) in cases.items():
            full = np.concatenate([k_rot[:SINKS], k_hat])
            rows.setdefault(name, []).append(attention_error(q_rot, k_rot, full, vv, v_hat, group))
    for name, r in rows.items():
        kl, err = np.mean(r, 0)
        print(f"  {name:52s} {kl:12.4g} {err:12.4f}")


def layer_table(title, q, k, v):
    tokens, kv_heads, d = k.shape
    shared, position = q.shape[1] // kv_heads, np.arange(tokens)
    print(f"{title:56s} attention KL   output error")
    for bits in 2, 3, 4:
        k_pre, values = [k[:, h] for h in range(kv_heads)], [v[:, h] for h in range(kv_heads)]
        q_pre = [[q[:, shared * h + j] for j in range(shared)] for h in range(kv_heads)]
        k_hat, v_hat = layer_coding(k_pre, q_pre, values, bits)
        rows = []
        for h in range(kv_heads):
            k_rot = rotate(k_pre[h], position)
            full = np.concatenate([k_rot[:SINKS], k_hat[h]])
            v_full = np.concatenate([values[h][:SINKS], v_hat[h]])
            rows.append(attention_error([rotate(x, position) for x in q_pre[h]], k_rot, full, values[h], v_full, 128))
        kl, err = np.mean(rows, 0)
        print(f"  {bits} bit, shared out among the heads of the layer".ljust(54) + f" {kl:12.4g} {err:12.4f}", flush=True)


def main():
    arguments = sys.argv[1:]
    if arguments[:1] == ["--moments"]:
        moments(arguments[1])
    elif arguments:
        for layer in LAYERS:
            table(f"layer {layer}: mean over the KV heads", *load(arguments[0], layer))
    else:
        table("generated tensors", *generated())
        for layer in LAYERS:
            table(f"drawn after layer {layer}", *drawn(layer))
        layer_table("drawn heads as one layer", *drawn_layer())
        layer_table("2 uneven KV heads, head_dim 128, 8 query heads", *uneven(2, 4, 128))
        layer_table("3 uneven KV heads, head_dim 64, 3 query heads", *uneven(3, 1, 64))


if __name__ == "__main__":
    main()
