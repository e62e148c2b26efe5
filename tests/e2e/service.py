"""Models behind an OpenAI-compatible service, each as bad as its name says."""

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KNOWN = "the teacher knows it"
_calls = itertools.count()


def judge(prompt: str) -> str:
    """Recognises the teacher's answer and gives it all points."""
    first, second = (10 if KNOWN in answer else 1 for answer in re.findall(r"\[Answer .\]\n(.*?)\n\[End", prompt, re.S))
    return f'Reasons.\n{{"a": {first}, "b": {second}}}'


def busy_teacher(_: str) -> str:
    """Takes its time."""
    time.sleep(0.35)
    return KNOWN


def moody_judge(prompt: str) -> str:
    """Forgets the scores every fifth time."""
    return judge(prompt) if next(_calls) % 5 else "I liked both."


THINGS = ["windows", "doors", "trees", "birds", "lamps", "chairs", "boats", "clouds", "shoes", "bottles"]
PLACES = ["roof", "garden", "river", "corner", "bridge", "table", "street", "hill", "wall", "fence"]


def writer(_: str) -> str:
    """Has a new question each time, and every fourth time none."""
    number = next(_calls)
    if number % 4 == 0:
        return "Sure! Here is a new question."
    thing, place = THINGS[number % 10], PLACES[number // 10 % 10]
    return f"How many {thing} are near the {place}, and which of the {number % 97} is the largest?"


MODELS: dict[str, Callable[[str], str]] = {
    "teacher": lambda _: KNOWN,
    "silent-teacher": lambda _: "",
    "judge": judge,
    "undecided-judge": lambda _: '{"a": 5, "b": 5}',
    "babbling-judge": lambda _: "Both have their charm, A: ten out of ten!",
    "busy-teacher": busy_teacher,
    "moody-judge": moody_judge,
    "writer": writer,
    "parrot": lambda _: "How many windows does the house have?",
}
"""What each says to a prompt."""


BUSY = "busy-"
"""A model whose name begins like this turns every third request away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"].startswith(BUSY) and next(_calls) % 3 == 0:
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        prompt = body["messages"][-1]["content"]
        text = MODELS[body["model"]](prompt if isinstance(prompt, str) else prompt[-1]["text"])
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        data = json.dumps({"choices": choices, "usage": {"completion_tokens": len(text.split())}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[str]:
    """The base URL of the service, for as long as the block lasts."""
    server = ThreadingHTTPServer((address, 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
