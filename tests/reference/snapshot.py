"""Reads snapshots by their description in include/squat/cache/snapshot.hpp alone, and compares.

  python3 snapshot.py DIRECTORY    every NAME.snapshot in it, with NAME.expected: what the library's dequantize() gives

Exits with 77 where NumPy is missing."""

import pathlib
import struct
import sys

try:
    import numpy as np
except ImportError:
    print("skipped: this test reads snapshots with NumPy, which is not installed")
    sys.exit(77)

NAMES = """element_type key_bits value_bits layers query_heads kv_heads head_dim coding fit values tail codes rank lambda block
           order allocation sinks residual page_tokens tile_tokens scale rotary statistics_tokens""".split()
SHAPE, CODING, COUNTS, TABLE, ROWS, PAGES, END = range(1, 8)


def crc32c(data):
    if not hasattr(crc32c, "table"):
        crc32c.table = []
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
            crc32c.table.append(byte)
    rest = 0xFFFFFFFF
    for byte in data:
        rest = rest >> 8 ^ crc32c.table[(rest ^ byte) & 255]
    return rest ^ 0xFFFFFFFF


def sections(data):
    assert data[:8] == b"squatsnp" and struct.unpack_from("<2I", data, 8) == (1, 1)
    at = 16
    while at < len(data):
        section, layer, size = struct.unpack_from("<2IQ", data, at)
        payload = data[at + 16:at + 16 + size]
        assert crc32c(data[at:at + 16 + size]) == struct.unpack_from("<I", data, at + 16 + size)[0], "checksum"
        yield section, layer, payload
        at += size + 20


class Reader:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def array(self, kind, *shape):
        count = int(np.prod(shape))
        values = np.frombuffer(self.data, np.dtype(kind).newbyteorder("<"), count, self.at).reshape(shape)
        self.at += values.nbytes
        return values

    def number(self, kind):
        return self.array(kind, 1)[0]


def read_coding(data, s):
    """A list of heads: mean, A^-T, widths; the codings of these tests share no bits."""
    d, heads = s["head_dim"], []
    r = Reader(data, 24)
    r.number("u4"), r.number("u8")
    assert r.number("u4") == 0 and r.number("u4") == 0
    for _ in range(s["kv_heads"]):
        head = {name: r.array("f4", d) if r.number("u4") else None for name in ("mean", "value_mean")} | {"matrix": None}
        if r.number("u4"):
            in_bytes = r.number("u4")
            codes, scales = r.array("i2", d, d).astype("f8"), r.array("f4", d).astype("f8")
            head["matrix"] = codes * scales[:, None]
            if in_bytes:
                head["matrix"] = (codes - 127.5) * scales[:, None] * r.array("f4", d).astype("f8")
            r.array("f4", d), r.number("f8")
            assert r.number("u4") == 0
            head["widths"] = [tuple(r.array("i4", 2)) for _ in range(r.number("u4"))]
            r.number("u4")
        if r.number("u4"):
            r.number("u4"), r.array("i4", d), r.array("f4", d * (d - 1) // 2)
        assert r.number("u4") == 0, "statistics of a coding that has learnt"
        heads.append(head)
    assert r.at == len(data)
    return heads


def plane(data, bits, rows, inner):
    """Codes [rows, inner] of a plane: blocks of 16 lanes x 4 bytes (coding/codes.hpp), and its size."""
    in_block = 32 // bits
    blocks = -(-inner // in_block)
    size = rows // 16 * blocks * 64
    packed = np.frombuffer(data, "u1", size).reshape(rows // 16, blocks, 16, 1, 4)
    shifts = (np.arange(8 // bits) * bits).astype("u1").reshape(1, 1, 1, -1, 1)
    codes = packed >> shifts & ((1 << bits) - 1)  # [lane blocks, blocks, lane, part, byte]
    return codes.transpose(0, 2, 1, 3, 4).reshape(rows, -1)[:, :inner].astype("f8"), size


def unpack(data, bits, rows, inner):
    if bits != 3:
        return plane(data, bits, rows, inner)
    low, size = plane(data, 2, rows, inner)
    high, more = plane(data[size:], 1, rows, inner)
    return low + 4 * high, size + more


def rotated_back(x):
    d = x.shape[-1]
    size = d & -d
    channel, odd = np.arange(size), size.bit_length() % 2 == 0
    pairs = channel >> 3 if odd else channel
    signs = np.where(odd & (channel & 7 == 7), -1, 1) * (-1) ** sum(pairs >> i & pairs >> i + 1 & 1 for i in range(0, 8, 2))
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(*x.shape[:-1], d // size, size) @ h / np.sqrt(size) * signs).reshape(x.shape)


def turn(x, positions, frequencies):
    """Rows x [tokens, head_dim] turned by their positions, pairs interleaved."""
    y, n = x.copy(), 2 * len(frequencies)
    c, s = (f(np.outer(positions, frequencies)) for f in (np.cos, np.sin))
    y[:, 0:n:2], y[:, 1:n:2] = x[:, 0:n:2] * c - x[:, 1:n:2] * s, x[:, 0:n:2] * s + x[:, 1:n:2] * c
    return y


def read_page(data, s, heads, entry, frequencies):
    """Keys and values [tokens that count, kv_heads, head_dim] of a page."""
    d, tokens, hkv = s["head_dim"], s["page_tokens"], s["kv_heads"]
    base, row, first, count = entry
    plain, scales = s["values"] == 0, 1
    if plain:
        scales = d // (32 if d % 32 == 0 else 16)
    r = Reader(data)
    parameters = [(r.array("f2", d), r.array("f2", d), r.array("f2", scales, tokens),
                   r.array("f2", scales, tokens) if plain else None) for _ in range(hkv)]
    of_keys, of_values = (unpack(bytes(1 << 20), s[b], *shape)[1]
                          for b, shape in (("key_bits", (tokens, d)), ("value_bits", (d, tokens))))
    assert len(data) == r.at + hkv * (of_keys + of_values)
    keys, values = np.zeros((tokens, hkv, d)), np.zeros((tokens, hkv, d))
    for h, (zeros, steps, value_steps, value_zeros) in enumerate(parameters):
        codes, at = np.zeros((tokens, d)), r.at + h * (of_keys + of_values)
        in_basis, channel, values_at = np.signbit(steps[0]), 0, at + of_keys
        for bits, channels in heads[h]["widths"] if in_basis else [(s["key_bits"], d)]:
            codes[:, channel:channel + channels], size = unpack(data[at:], bits, tokens, channels)
            channel, at = channel + channels, at + size
        k = zeros.astype("f8") + np.abs(steps).astype("f8") * codes
        if in_basis:
            k = k @ heads[h]["matrix"]
        if heads[h]["mean"] is not None:
            k += turn(np.tile(heads[h]["mean"].astype("f8"), (tokens, 1)), row + np.arange(tokens), frequencies)
        keys[:, h] = turn(k, np.full(tokens, base), frequencies)
        v = unpack(data[values_at:], s["value_bits"], d, tokens)[0].T
        value_steps = np.repeat(value_steps.astype("f8").T, d // scales, axis=1)
        if plain:
            values[:, h] = np.repeat(value_zeros.astype("f8").T, d // scales, axis=1) + value_steps * v
        else:
            v = (v - ((1 << s["value_bits"]) - 1) / 2) * value_steps
            values[:, h] = rotated_back(v + heads[h]["value_mean"] if np.signbit(steps[2]) else v)
    return keys[first:first + count], values[first:first + count]


def read_rows(r, count, s, in_bytes):
    shape = (count, 2, s["kv_heads"])
    if not in_bytes:
        x = r.array({0: "f4", 1: "f2"}[s["element_type"]], *shape, s["head_dim"]).astype("f8")
    else:
        raw = r.array("u1", *shape, s["head_dim"] + 2)
        steps = raw[..., -2:].copy().view("<f2").astype("f8")
        x = rotated_back(raw[..., :-2].copy().view("i1") * steps)
    return x[:, 0], x[:, 1]


def check(path):
    expected = Reader(path.with_suffix(".expected").read_bytes())
    frequencies = expected.array("f4", expected.number("u4")).astype("f8")
    counts, codings, tables, compared = {}, {}, {}, 0
    for section, layer, data in sections(path.read_bytes()):
        r = Reader(data)
        if section == SHAPE:
            s = dict(zip(NAMES, (int(x) for x in r.array("u8", len(NAMES)))))
        elif section == COUNTS:
            counts[layer] = [int(x) for x in r.array("i8", 4)]
        elif section == CODING:
            codings[layer] = read_coding(data, s)
        elif section == TABLE:
            tables[layer] = [struct.unpack_from("<q3iI", data, 24 * i) for i in range(counts[layer][2])]
        elif section == ROWS:
            sinks, tail = read_rows(r, counts[layer][0], s, False), read_rows(r, counts[layer][1], s, s["tail"] == 1)
            assert r.at == len(data)
        elif section == PAGES:
            distinct = sum(1 - entry[4] for entry in tables[layer])
            size, page, parts = len(data) // max(distinct, 1), -1, [sinks]
            for entry in tables[layer]:
                page += 1 - entry[4]
                parts.append(read_page(data[page * size:(page + 1) * size], s, codings[layer], entry[:4], frequencies))
            parts.append(tail)
            for i, name in enumerate(("keys", "values")):
                found = np.concatenate([part[i] for part in parts])
                wanted = expected.array("f4", *found.shape)
                error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
                assert error < 1e-3, f"{path.name}: {name} of layer {layer} differ by {error}"
                compared += found.size
    assert section == END and expected.at == len(expected.data)
    print(f"{path.name}: {compared} numbers are those of the library")


files = sorted(pathlib.Path(sys.argv[1]).glob("*.snapshot"))
assert files, "no snapshots in " + sys.argv[1]
for each in files:
    check(each)
