"""A sentence hidden in a long text, asked for at its end: how often a model over a packed cache finds it.

usage: retrieval.py SERVE MODEL --text FILE [--tokens 4096 8192 16384] ...
"""

import argparse
import pathlib
import random
import sys

from serving import add_arguments, complete, keep

DEPTHS = 10
CHARACTERS_A_TOKEN = 4.2  # of WikiText, in the vocabularies of these models
CITIES = ["Lisbon", "Nairobi", "Oslo", "Quito", "Hanoi", "Tallinn", "Accra", "Lima", "Osaka", "Perth"]


def requests_of(text, tokens, draws):
    """A request a depth and draw, and what is to be found."""
    characters = int(tokens * CHARACTERS_A_TOKEN)
    requests, answers = [], {}
    for draw in range(draws):
        chance = random.Random(1000 * tokens + draw)
        begin = text.index("\n", chance.randrange(len(text) - 2 * characters)) + 1
        for depth in range(DEPTHS):
            number, city = str(chance.randrange(10000, 100000)), CITIES[(depth + draw) % len(CITIES)]
            cut = text.index("\n", begin + int((depth + 0.5) / DEPTHS * characters)) + 1
            question = f"The secret number of {city} is"
            name = f"{draw}/{depth}"
            requests.append({"id": name, "max_tokens": 8,
                             "prompt": f"{text[begin:cut]}{question} {number}.\n{text[cut:begin + characters]}\n{question}"})
            answers[name] = number
    return requests, answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--text", type=pathlib.Path, required=True, help="some MB of prose")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--draws", type=int, default=3, help="for each of the depths")
    arguments = parser.parse_args()
    text = arguments.text.read_text()
    for tokens in arguments.tokens:
        requests, answers = requests_of(text, tokens, arguments.draws)
        for coding in arguments.codings:
            texts, seconds = complete(arguments, coding, requests)
            found = [name for name, number in answers.items() if number in texts.get(name, "").replace(",", "")]
            by_depth = [sum(name.endswith(f"/{depth}") for name in found) for depth in range(DEPTHS)]
            keep(arguments, f"retrieval {tokens}", {"coding": coding, "score": len(found) / len(answers), "of": len(answers),
                                                    "minutes": round(seconds / 60, 1), "found_by_depth": by_depth})


if __name__ == "__main__":
    sys.exit(main())
