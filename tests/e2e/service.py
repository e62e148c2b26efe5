"""Models behind an OpenAI-compatible service on 127.0.0.1, each as bad as its name says."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KNOWN = "the teacher knows it"


def judge(prompt: str) -> str:
    """Recognises the teacher's answer and gives it all points."""
    first, second = (10 if KNOWN in answer else 1 for answer in re.findall(r"\[Answer .\]\n(.*?)\n\[End", prompt, re.S))
    return f'Reasons.\n{{"a": {first}, "b": {second}}}'


MODELS: dict[str, Callable[[str], str]] = {
    "teacher": lambda _: KNOWN,
    "silent-teacher": lambda _: "",
    "judge": judge,
    "undecided-judge": lambda _: '{"a": 5, "b": 5}',
    "babbling-judge": lambda _: "Both have their charm, A: ten out of ten!",
    "parrot": lambda _: "How many windows does the house have?",
}
"""What each says to a prompt."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        text = MODELS[body["model"]](prompt if isinstance(prompt, str) else prompt[-1]["text"])
        message = {"role": "assistant", "content": text}
        data = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    """The base URL of the service, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
