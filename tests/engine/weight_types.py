"""Weights as the Python package gguf reads them: weight_types.py ENGINE_TESTS VENV. Writes a file of random blocks of every
type, with what the package makes of them as F32 beside it, for the test WeightTypes to compare. Makes the virtual environment
where it is not there, and is skipped (77) where the package cannot be had."""

import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import virtual_environment  # noqa: E402

PROGRAM, VENV = sys.argv[1:3]
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
ROWS, COLUMNS = 8, 512

try:
    import gguf
    import numpy as np
except ImportError:
    virtual_environment.enter(VENV, "gguf>=0.10", "the package gguf")

# Where a block has its float16 scales, which random bytes would make infinite.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_rows(random, name):
    """Rows of blocks as bytes: [ROWS, bytes of a row]."""
    if name in ("F16", "BF16"):
        values = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        bits = values.astype(np.float16).view(np.uint16) if name == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits.view(np.uint8)
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
    for at in SCALES[name]:
        blocks[:, at:at + 2] = random.standard_normal((len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(ROWS, -1)


def main():
    random = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "types.gguf")
        writer = gguf.GGUFWriter(path, "none")
        for name in TYPES:
            kind = gguf.GGMLQuantizationType[name]
            rows = random_rows(random, name)
            writer.add_tensor(name, rows, raw_dtype=kind)
            writer.add_tensor(name + ".expected", gguf.dequantize(rows, kind).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        environment = {**os.environ, "SQUAT_WEIGHT_TYPES": path, "SQUAT_WEIGHT_TYPE_NAMES": ",".join(TYPES)}
        test = subprocess.run([PROGRAM, "--gtest_filter=WeightTypes.*"], env=environment, capture_output=True, text=True)
        print(test.stdout, test.stderr)
        return test.returncode if "1 test from" in test.stdout and "SKIPPED" not in test.stdout else 1


sys.exit(main())
