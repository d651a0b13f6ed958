"""A server of a model for tests: started on a free port of the loopback, ended by SIGTERM."""

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request


class Server:
    def __init__(self, program, model, *arguments):
        self.process = subprocess.Popen([program, model, "--port", "0", *arguments], stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", line)
        assert found, f"no address in: {line!r}"
        self.url = found.group()
        for _ in range(100):  # it listens before it accepts
            try:
                if self.get("/health", base=self.url[: -len("/v1")])[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()

    def end(self, how=signal.SIGTERM):
        """Returns the exit status and what it says at its end."""
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def get(self, path, base=None):
        return self._open((base or self.url) + path)

    def post(self, path, body):
        """body: an object, or bytes as they are. Returns the status and the answer's object."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._open(self.url + path, data)

    @staticmethod
    def _open(url, data=None):
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
