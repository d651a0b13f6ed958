"""The openai client against the server: openai_test.py SERVE MODEL VENV. Makes the virtual environment where it is not there,
and is skipped (77) where the client cannot be had."""

import os
import sys
import unittest

from server import Server

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import virtual_environment  # noqa: E402

PROGRAM, MODEL, VENV = sys.argv[1:4]

try:
    import openai
except ImportError:
    virtual_environment.enter(VENV, "openai>=1,<3", "the openai client")


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(PROGRAM, MODEL, "--coding", "exact:g16:w16")
        cls.client = openai.OpenAI(base_url=cls.server.url, api_key="none", max_retries=0, timeout=60)
        cls.model = cls.client.models.list().data[0].id

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        status, said = cls.server.end()
        assert status == 0, said

    def test_chats(self):
        asked = {"model": self.model, "messages": [{"role": "user", "content": "the inn"}], "temperature": 0, "max_tokens": 20}
        whole = self.client.chat.completions.create(**asked)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        self.assertEqual(whole.usage.completion_tokens, 20)
        pieces = list(self.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(pieces[-1].usage.total_tokens, whole.usage.total_tokens)

    def test_completes(self):
        asked = {"model": self.model, "prompt": "in the", "max_tokens": 20, "seed": 7, "temperature": 0.8}
        whole = self.client.completions.create(**asked)
        again = "".join(piece.choices[0].text for piece in self.client.completions.create(**asked, stream=True))
        self.assertEqual(again, whole.choices[0].text)

    def test_shares_what_prompts_begin_with(self):
        prompt = "0123456789" * 12
        self.client.completions.create(model=self.model, prompt=prompt, max_tokens=1)
        second = self.client.completions.create(model=self.model, prompt=prompt + " then", max_tokens=1)
        self.assertGreaterEqual(second.usage.prompt_tokens_details.cached_tokens, 119)

    def test_raises_what_is_wrong(self):
        with self.assertRaisesRegex(openai.BadRequestError, "context is 512"):
            self.client.completions.create(model=self.model, prompt="x", max_tokens=1000)

    def test_can_leave_a_stream(self):
        with self.client.completions.create(model=self.model, prompt="x", max_tokens=400, stream=True) as stream:
            next(iter(stream))
        self.client.completions.create(model=self.model, prompt="x", max_tokens=1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
