"""Compares the engine with Hugging Face's transformers on one GGUF file: tokens of a text, and at its last positions the
distributions of the next token. For running by hand, in an environment with torch, transformers and gguf:

    ninja -C BUILD logits
    python3 tests/engine/compare_with_transformers.py BUILD/tests/logits MODEL.gguf TEXT --tokens 200 --last 200

Fails where tokens or most likely next tokens differ, or the mean KL divergence is 1e-4 nats or more. Transformers computes in
float32; the engine, too, but with matrices rounded to float16: --rounded takes the same of transformers."""

import argparse
import os
import subprocess
import sys

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


def ours(program, model, text, tokens, last):
    raw = subprocess.run([program, model, text, str(tokens), str(last)], stdout=subprocess.PIPE, check=True).stdout
    count, positions, vocabulary = np.frombuffer(raw, np.int32, 3)
    ids = np.frombuffer(raw, np.int32, count, 12)
    return ids, np.frombuffer(raw, np.float32, offset=12 + 4 * count).reshape(positions, vocabulary)


def their_config(folder, name):
    """Transformers takes the channels of a head from few files, and the scale of Gemma's queries from none: it assumes those of
    the published models."""
    import gguf
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    reader = gguf.GGUFReader(os.path.join(folder, name))
    width = reader.fields.get(bytes(reader.fields["general.architecture"].parts[-1]).decode() + ".attention.key_length")
    if width is not None:
        config.head_dim = int(width.parts[-1][0])
        if hasattr(config, "query_pre_attn_scalar") and config.num_hidden_layers not in (46, 62):
            config.query_pre_attn_scalar = config.head_dim
    return config


def theirs(model, ids, last, rounded):
    import torch
    from transformers import AutoModelForCausalLM

    folder, name = os.path.split(os.path.abspath(model))
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32,
                                                   config=their_config(folder, name)).eval()
    with torch.no_grad():
        for weights in network.parameters():
            if rounded and weights.dim() == 2:
                weights.copy_(weights.half().float())
        return network(torch.tensor(ids[None].astype(np.int64)), logits_to_keep=last).logits[0].numpy()


def check_tokens(model, text, ids):
    from transformers import AutoTokenizer

    folder, name = os.path.split(os.path.abspath(model))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    expected = tokenizer(open(text, encoding="utf-8", newline="").read()[:20 * len(ids)])["input_ids"]
    if expected[:1] != [ids[0]]:  # transformers does not always know that a text begins with a token of its own
        ids = ids[1:]
    count = min(len(ids), len(expected) - 10)  # behind it the text was cut
    differing = [i for i in range(count) if ids[i] != expected[i]]
    if differing:
        at = differing[0]
        print(f"tokens differ from the {at}th on: ours {tokenizer.convert_ids_to_tokens(ids[at:at + 6].tolist())}, "
              f"theirs {tokenizer.convert_ids_to_tokens(expected[at:at + 6])}")
    return not differing


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--last", type=int, default=200)
    parser.add_argument("--rounded", action="store_true", help="rounds transformers' weights to float16, as the engine's are")
    parser.add_argument("--no-tokenizer", action="store_true",
                        help="for models of Architectures.AreWrittenForAnotherEngine, whose vocabulary transformers does not take")
    arguments = parser.parse_args()
    ids, a = ours(arguments.program, arguments.model, arguments.text, arguments.tokens, arguments.last)
    b = theirs(arguments.model, ids, len(a), arguments.rounded)
    p, q = log_softmax(b), log_softmax(a)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    same = a.argmax(axis=1) == b.argmax(axis=1)
    same_tokens = arguments.no_tokenizer or check_tokens(arguments.model, arguments.text, ids)
    print(f"{os.path.basename(arguments.model)}: {len(ids)} tokens, {'the same' if same_tokens else 'DIFFERENT'}; "
          f"{len(a)} positions: KL mean {kl.mean():.2e}, most {kl.max():.2e}; top-1 equal at {same.sum()}; "
          f"largest difference of logits {np.abs(a - b).max():.2e}")
    for at in np.flatnonzero(~same):
        first, second = np.sort(b[at])[[-1, -2]]
        print(f"  position {at}: their two largest logits are {first:.5f} and {second:.5f}")
    return 0 if same_tokens and same.all() and kl.mean() < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
