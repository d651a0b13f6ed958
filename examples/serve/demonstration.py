"""Writes requests for `serve --requests`, made from a text: demonstration.py TEXT. All begin with the same part of it, and
each goes on with a passage of its own."""

import json
import sys

SHARED, PASSAGE, REQUESTS = 3000, 1200, 24  # characters, and how many

with open(sys.argv[1], encoding="utf-8") as file:
    text = file.read()
step = (len(text) - SHARED - PASSAGE) // REQUESTS
print(json.dumps({"id": "shared", "prompt": text[:SHARED], "max_tokens": 0}))
for number in range(REQUESTS):
    passage = text[SHARED + number * step:][:PASSAGE]
    print(json.dumps({"id": f"request {number}", "parent": "shared", "prompt": passage, "max_tokens": 96, "temperature": 0.7,
                      "seed": number}))
