"""The server over HTTP, called by curl and over plain sockets: http_test.py SERVE MODEL."""

import concurrent.futures
import http.client
import json
import re
import signal
import subprocess
import sys
import unittest
import unittest.mock
import urllib.parse

from server import Server

PROGRAM, MODEL = sys.argv[1:3]
ARGUMENTS = ["--coding", "exact:g16:w16"]


def curl(*arguments):
    return subprocess.run(["curl", "--silent", "--show-error", "--max-time", "60", *arguments], capture_output=True, text=True,
                          check=True).stdout


class Served(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(PROGRAM, MODEL, *ARGUMENTS, "--body-bytes", "20000", "--prompt-tokens", "300")

    @classmethod
    def tearDownClass(cls):
        status, said = cls.server.end(signal.SIGINT)
        assert status == 0, said

    def test_completions_by_curl(self):
        body = {"prompt": "in the inn", "max_tokens": 12, "temperature": 0}
        answers = [json.loads(curl(self.server.url + "/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)))
                   for _ in range(2)]
        answer = answers[0]
        self.assertEqual(answer["object"], "text_completion")
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")
        self.assertEqual(answer["usage"]["completion_tokens"], 12)
        self.assertEqual(answer["usage"]["total_tokens"], 12 + answer["usage"]["prompt_tokens"])
        self.assertEqual(answer["choices"][0]["text"], answers[1]["choices"][0]["text"])

    def test_streams_by_curl_are_the_whole_text(self):
        body = {"messages": [{"role": "user", "content": "the inn"}], "max_tokens": 12, "temperature": 0}
        whole = json.loads(curl(self.server.url + "/chat/completions", "-d", json.dumps(body)))
        body.update(stream=True, stream_options={"include_usage": True})
        events = curl("--no-buffer", self.server.url + "/chat/completions", "-d", json.dumps(body)).strip().split("\n\n")
        self.assertTrue(all(event.startswith("data: ") for event in events))
        self.assertEqual(events.pop(), "data: [DONE]")
        pieces = [json.loads(event[len("data: "):]) for event in events]
        self.assertEqual(pieces[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertEqual(pieces.pop()["usage"], whole["usage"] | {"prompt_tokens_details": unittest.mock.ANY})
        self.assertEqual(pieces[-1]["choices"][0]["finish_reason"], "length")
        text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
        self.assertEqual(text, whole["choices"][0]["message"]["content"])

    def test_a_taken_port_is_refused(self):
        port = str(urllib.parse.urlparse(self.server.url).port)
        second = subprocess.run([PROGRAM, MODEL, *ARGUMENTS, "--port", port], capture_output=True, text=True, timeout=60)
        self.assertEqual((second.returncode, second.stderr), (1, f"serve: cannot listen on 127.0.0.1:{port}\n"))

    def test_models(self):
        status, answer = self.server.get("/models")
        self.assertEqual((status, answer["data"][0]["object"]), (200, "model"))

    def test_bad_requests_get_a_sentence(self):
        for path, body, sentence in [
            ("/completions", b"{", "the request is no JSON"),
            ("/completions", b"[]", "the request is no JSON object"),
            ("/completions", {}, "prompt is missing"),
            ("/completions", {"prompt": ["a", "b"]}, "prompt must be one text or the tokens of one"),
            ("/completions", {"prompt": [1, 100000]}, "prompt must be one text or the tokens of one"),
            ("/completions", {"prompt": ""}, "the prompt is empty"),
            ("/completions", {"prompt": "x", "max_tokens": "5"}, 'max_tokens is "5", must be a whole number from 0 to 1048576'),
            ("/completions", {"prompt": "x", "max_tokens": 1000}, "prompt and max_tokens are 1 + 1000, the model's context is 512"),
            ("/completions", {"prompt": "0123456789" * 40}, "the prompt has 400 tokens, at most 300 are taken"),
            ("/completions", {"prompt": "x", "temperature": -1}, "temperature is -1, must be a number from 0 to 100"),
            ("/completions", {"prompt": "x", "n": 2}, "n is 2, only 1 is offered"),
            ("/completions", {"prompt": "x", "stop": [""]}, 'stop is "", must be a text of 1 to 256 bytes'),
            ("/chat/completions", {"prompt": "x"}, "messages is missing, or no list of messages"),
            ("/chat/completions", {"messages": [{"role": "user"}]}, "content is missing"),
            ("/chat/completions", {"messages": [5]}, "messages holds what is no object"),
        ]:
            with self.subTest(body=body):
                status, answer = self.server.post(path, body)
                self.assertEqual((status, answer["error"]["message"]), (400, sentence))
                self.assertEqual(answer["error"]["type"], "invalid_request_error")

    def test_what_is_not_there_is_404(self):
        self.assertEqual(self.server.post("/embeddings", {})[0], 404)
        self.assertEqual(self.server.get("/completions")[0], 404)

    def test_bodies_are_limited(self):
        status, answer = self.server.post("/completions", {"prompt": "x" * 30000})
        self.assertEqual((status, answer["error"]["message"]), (413, "the body may have 20000 bytes"))


class Clients(unittest.TestCase):
    """Many at once where one request runs at a time, so that most of them wait."""

    COUNT = 40
    BODY = {"prompt": "in the inn", "max_tokens": 400, "temperature": 0}

    def open_stream(self, server):
        connection = http.client.HTTPConnection(urllib.parse.urlparse(server.url).netloc, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(self.BODY | {"stream": True}))
        return connection

    def test_beyond_the_limit_get_429(self):
        with Server(PROGRAM, MODEL, *ARGUMENTS, "--open", "4", "--running", "1") as server:
            with concurrent.futures.ThreadPoolExecutor(self.COUNT) as threads:
                answers = list(threads.map(lambda _: server.post("/completions", self.BODY), range(self.COUNT)))
            self.assertEqual({status for status, _ in answers}, {200, 429})
            refused = next(answer for status, answer in answers if status == 429)
            self.assertEqual(refused["error"]["type"], "rate_limit_error")
            self.assertEqual(server.post("/completions", self.BODY)[0], 200)

    def test_that_leave_are_not_served(self):
        with Server(PROGRAM, MODEL, *ARGUMENTS, "--running", "1") as server:
            for _ in range(self.COUNT):
                self.open_stream(server).close()
            self.assertEqual(server.post("/completions", self.BODY)[0], 200)
            status, said = server.end()
            self.assertEqual(status, 0, said)
            served = int(re.search(r"^requests +(\d+)", said, re.MULTILINE).group(1))
            self.assertLess(served, self.COUNT)

    def test_are_cut_off_when_the_server_ends(self):
        with Server(PROGRAM, MODEL, *ARGUMENTS, "--running", "1") as server:
            connections = [self.open_stream(server) for _ in range(self.COUNT)]
            self.assertEqual(connections[0].getresponse().status, 200)
            status, said = server.end()
            self.assertEqual(status, 0, said)
            with self.assertRaises((http.client.HTTPException, ConnectionError)):
                for connection in connections[1:]:
                    connection.getresponse().read()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
