"""An OpenAI-compatible service as a model, against a real server on 127.0.0.1 that misbehaves in the ways services
do."""

import base64
import email.utils
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comd_api.exit_codes import BadDataError, ComdError, ExitCode, TryAgainError, UserError
from comd_api.recipe import Decoding
from comd_api.roles import Endpoint, SecretKeyRef
from comd_trainer import metrics
from comd_trainer.data.images import Images
from comd_trainer.data.rows import Turn
from comd_trainer.generation.base import Reply, Request
from comd_trainer.generation.endpoint import EndpointGenerator, read_key

GREEDY = Decoding(temperature=0.0, max_new_tokens=7)
Respond = Callable[["Handler", dict[str, Any], int], None]
"""Told the handler, the request's body, and how often this question was asked before."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        question = question if isinstance(question, str) else question[-1]["text"]
        with self.server.lock:
            before = self.server.asked[question]
            self.server.asked[question] += 1
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        try:
            self.server.respond(self, body, before)
        except OSError:
            pass  # the client has hung up
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond, self.lock = respond, threading.Lock()
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most = 0

    def endpoint(self, **changes: Any) -> Endpoint:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return Endpoint(**{"url": url, "model": "m", "timeout_seconds": 5, "concurrency": 4, **changes})


@contextmanager
def serving(respond: Respond) -> Iterator[Service]:
    service = Service(respond)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
        thread.join()


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def echo(handler: Handler, body: dict[str, Any], before: int) -> None:  # noqa: ARG001
    question = body["messages"][-1]["content"]
    handler.send(200, completion(f" you said {question if isinstance(question, str) else question[-1]['text']}\n"))


def request(text: str, *, image: str | None = None, seed: int = 5) -> Request:
    return Request(key=f"key of {text}", turns=(Turn(role="user", text=text),), image=image, seed=seed)


def ask(
    endpoint: Endpoint,
    requests: list[Request],
    decoding: Decoding = GREEDY,
    images: Images | None = None,
    **options: Any,
) -> dict[str, Reply]:
    replies: list[Reply] = []
    options = {
        "field": "spec.teacher.endpoint",
        "key": None,
        "patience_seconds": 30.0,
        "max_wait_seconds": 0.2,
        **options,
    }
    EndpointGenerator(endpoint, images, **options).generate(requests, decoding, replies.extend)
    assert len({reply.key for reply in replies}) == len(replies), "each request is answered once"
    return {reply.key: reply for reply in replies}


def test_what_is_sent_and_what_comes_back(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.bmp")
    turns = (Turn(role="user", text="first"), Turn(role="assistant", text="reply"), Turn(role="user", text="second"))
    sampled = Decoding(temperature=0.5, top_p=0.9, max_new_tokens=9)
    with serving(echo) as service:
        asked = Request(key="k", turns=turns, image="red.png", seed=77)
        replies = ask(service.endpoint(), [asked], sampled, Images(tmp_path), key="secret")
        ask(service.endpoint(), [request("bmp", image="red.bmp")], GREEDY, Images(tmp_path))
    assert replies == {"k": Reply(key="k", text="you said second", finish="stop")}
    body, bitmap = service.bodies
    picture, text = body["messages"][0].pop("content")
    assert text == {"type": "text", "text": "first"}
    assert (
        base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
        == (tmp_path / "red.png").read_bytes()
    )
    assert body == {
        "model": "m",
        "messages": [
            {"role": "user"},
            {"role": "assistant", "content": "reply"},
            {"role": "user", "content": "second"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 9,
        "seed": 77,
    }
    assert service.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in service.headers[1]
    assert bitmap["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "seed" not in bitmap, "greedy decoding draws nothing"


def test_concurrency_is_used_and_kept() -> None:
    def slow(handler: Handler, body: dict[str, Any], before: int) -> None:
        time.sleep(0.02)
        echo(handler, body, before)

    with serving(slow) as service:
        replies = ask(service.endpoint(concurrency=6), [request(f"q{index}") for index in range(60)])
    assert {reply.text for reply in replies.values()} == {f"you said q{index}" for index in range(60)}
    assert service.most == 6
    assert max(service.asked.values()) == 1


def flaky(*statuses: int, **headers: str) -> Respond:
    """Fails with each status in turn, then answers."""

    def respond(handler: Handler, body: dict[str, Any], before: int) -> None:
        if before < len(statuses):
            handler.send(statuses[before], {"error": "no"}, **headers)
        else:
            echo(handler, body, before)

    return respond


@pytest.mark.parametrize("statuses", [(500,), (502, 503), (429,), (408, 504, 500)])
def test_what_may_pass_is_asked_again(statuses: tuple[int, ...]) -> None:
    with serving(flaky(*statuses)) as service:
        replies = ask(service.endpoint(), [request("q")])
    assert replies["key of q"].text == "you said q"
    assert service.asked["q"] == len(statuses) + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    # A date has whole seconds: two seconds from now are more than one.
    value = "1.2" if form == "seconds" else email.utils.formatdate(time.time() + 2.5, usegmt=True)
    started = time.monotonic()
    with serving(flaky(429, Retry_After=value)) as service:
        ask(service.endpoint(), [request("q")], max_wait_seconds=0.01)
    assert 1.0 < time.monotonic() - started < 4.0


def test_what_went_wrong_and_what_was_written_is_counted() -> None:
    """By the reason, and as far as the service tells: two of three replies say how many tokens they are."""
    told: list[tuple[int, dict[str, Any]]] = [(503, {}), (500, {}), (200, {"nothing": "here"}), (200, completion("a"))]
    used: list[dict[str, Any]] = [
        {"usage": {"completion_tokens": 5}},
        {"usage": None},
        {"usage": {"completion_tokens": 7}},
    ]

    def respond(handler: Handler, body: dict[str, Any], before: int) -> None:
        status, said = told[min(before, 3)]
        number = int(body["messages"][-1]["content"])
        handler.send(status, {**said, **used[number]} if "choices" in said else said)

    metrics.OWN.take()
    with serving(respond) as service:
        ask(service.endpoint(), [request(str(number)) for number in range(3)])
    counted = metrics.OWN.values()
    errors = {reason: counted["comd_endpoint_errors", ("model", reason)] for reason in ("busy", "failed", "unreadable")}
    assert errors == {"busy": 3, "failed": 3, "unreadable": 3}
    assert counted["comd_generated_tokens", ()] == 12


def test_a_hanging_request_is_given_up_and_asked_again() -> None:
    def hang_first(handler: Handler, body: dict[str, Any], before: int) -> None:
        if before == 0:
            time.sleep(3)
        else:
            echo(handler, body, before)

    started = time.monotonic()
    with serving(hang_first) as service:
        replies = ask(service.endpoint(timeout_seconds=1), [request("q")])
        assert time.monotonic() - started < 2.5
    assert replies["key of q"].text == "you said q"


def test_a_dripping_reply_is_bounded_as_a_whole() -> None:
    def drip(handler: Handler, body: dict[str, Any], before: int) -> None:
        if before:
            echo(handler, body, before)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(12):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.25)

    started = time.monotonic()
    with serving(drip) as service:
        ask(service.endpoint(timeout_seconds=1), [request("q")])
        assert time.monotonic() - started < 2.5


def test_a_broken_connection_is_made_again() -> None:
    def hang_up_first(handler: Handler, body: dict[str, Any], before: int) -> None:
        if before:
            echo(handler, body, before)
        else:
            handler.close_connection = True
            handler.connection.close()

    with serving(hang_up_first) as service:
        assert ask(service.endpoint(), [request("q")])["key of q"].text == "you said q"


BROKEN: dict[str, object] = {
    "no JSON": b"<html>proxy error</html>",
    "cut JSON": b'{"choices": [{"mess',
    "no choices": {"choices": []},
    "no message": {"choices": [{"finish_reason": "stop"}]},
    "message is null": {"choices": [{"message": None}]},
    "a list": [],
    "null": None,
    "text is a number": {"choices": [{"message": {"content": 3}}]},
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_completion_is_asked_again_and_then_named(body: Any) -> None:
    with serving(
        lambda handler, sent, before: handler.send(200, body) if before < 2 else echo(handler, sent, before)
    ) as service:
        assert ask(service.endpoint(), [request("q")])["key of q"].text == "you said q"
    with serving(lambda handler, *_: handler.send(200, body)) as service, pytest.raises(BadDataError) as caught:
        ask(service.endpoint(), [request("q")])
    assert "spec.teacher.endpoint" in str(caught.value)
    assert "request 'q'" in str(caught.value)
    assert service.asked["q"] == 4


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (completion(None), ("", "stop")),
        (completion("  "), ("", "stop")),
        (completion("cut", "length"), ("cut", "length")),
        (completion("so", "content_filter"), ("so", "stop")),
        (completion("cut in a \ud83d"), ("cut in a ?", "stop")),
        ({"choices": [{"message": {}}]}, ("", "stop")),
    ],
)
def test_odd_but_legal_replies(body: Any, reply: tuple[str, str]) -> None:
    with serving(lambda handler, *_: handler.send(200, body)) as service:
        answer = ask(service.endpoint(), [request("q")])["key of q"]
    assert (answer.text, answer.finish) == reply


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_the_users_error(status: int) -> None:
    with (
        serving(lambda handler, *_: handler.send(status, {"error": "because"})) as service,
        pytest.raises(UserError) as caught,
    ):
        ask(service.endpoint(), [request("q"), request("r")])
    assert "spec.teacher.endpoint" in str(caught.value)
    assert "because" in str(caught.value)
    assert max(service.asked.values()) == 1, "asked once, not again and again"


def test_nobody_there_is_tried_again_later() -> None:
    with serving(echo) as service:
        endpoint = service.endpoint()
    started = time.monotonic()
    with pytest.raises(TryAgainError, match=r"spec\.teacher\.endpoint.*could not be asked"):
        ask(endpoint, [request("q")], patience_seconds=1.0)
    assert 1.0 <= time.monotonic() - started < 5.0


def test_always_busy_is_tried_again_later() -> None:
    with (
        serving(lambda handler, *_: handler.send(503, {})) as service,
        pytest.raises(TryAgainError, match="status 503"),
    ):
        ask(service.endpoint(), [request("q")], patience_seconds=0.5)


def test_one_request_that_never_works_fails_by_name() -> None:
    def poisoned(handler: Handler, body: dict[str, Any], before: int) -> None:
        time.sleep(0.02)
        if body["messages"][-1]["content"] == "poison":
            handler.send(500, {})
        else:
            echo(handler, body, before)

    requests = [request("poison"), *(request(f"q{index}") for index in range(40))]
    with serving(poisoned) as service, pytest.raises(ComdError, match="not request 'poison'") as caught:
        ask(service.endpoint(concurrency=2), requests, patience_seconds=0.5)
    assert caught.value.exit_code == ExitCode.FAILED


def test_a_busy_service_that_answers_somebody_is_waited_for() -> None:
    first = time.monotonic()

    def busy(handler: Handler, body: dict[str, Any], before: int) -> None:
        time.sleep(0.02)
        if body["messages"][-1]["content"] == "late" and time.monotonic() - first < 1.2:
            handler.send(429, {})
        else:
            echo(handler, body, before)

    requests = [request("late"), *(request(f"q{index}") for index in range(60))]
    with serving(busy) as service:
        replies = ask(service.endpoint(concurrency=2), requests, patience_seconds=0.6, max_wait_seconds=0.05)
    assert len(replies) == 61


def test_a_stop_ends_it_though_the_service_hangs() -> None:
    stop = time.monotonic() + 0.6

    def check() -> None:
        if time.monotonic() > stop:
            raise TryAgainError("stopped")

    def hang(handler: Handler, body: dict[str, Any], before: int) -> None:
        if body["messages"][-1]["content"] == "quick":
            echo(handler, body, before)
        else:
            time.sleep(3)

    seen: list[Reply] = []
    started = time.monotonic()
    with serving(hang) as service:
        generator = EndpointGenerator(service.endpoint(), None, field="f", key=None, check=check)
        with pytest.raises(TryAgainError, match="stopped"):
            generator.generate([request("quick"), request("slow")], GREEDY, seen.extend)
        assert time.monotonic() - started < 2.5
    assert [reply.text for reply in seen] == ["you said quick"], "what was finished before is not lost"


def test_an_error_of_the_caller_ends_it() -> None:
    def full(_: list[Reply]) -> None:
        raise OSError("disk full")

    with serving(echo) as service, pytest.raises(OSError, match="disk full"):
        EndpointGenerator(service.endpoint(), None, field="f", key=None).generate([request("q")], GREEDY, full)


def test_bad_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with serving(echo) as service:
        for name in ("broken.png", "nowhere.png"):
            with pytest.raises(BadDataError, match=rf"data\.images: image '{name}'"):
                ask(service.endpoint(), [request("q", image=name)], images=Images(tmp_path))


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(
        url="http://127.0.0.1:1/v1", model="m", api_key_secret_ref=SecretKeyRef(name="my-judge", key="api.key_1")
    )
    monkeypatch.setenv("COMD_SECRET_MY_JUDGE_API_KEY_1", " sk-1\n")
    assert read_key(endpoint, field="spec.teacher.endpoint") == "sk-1"
    monkeypatch.delenv("COMD_SECRET_MY_JUDGE_API_KEY_1")
    with pytest.raises(UserError, match=r"spec\.teacher\.endpoint\.apiKeySecretRef.*COMD_SECRET_MY_JUDGE_API_KEY_1"):
        read_key(endpoint, field="spec.teacher.endpoint")
    assert read_key(Endpoint(url="http://127.0.0.1:1/v1", model="m"), field="f") is None
