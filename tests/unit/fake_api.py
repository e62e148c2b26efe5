"""An API server of a few answers, for what asks it or writes to it. What a real one does is tested on a real one (tests/api)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comd_operator.runtime.api import ApiError


class Call(NamedTuple):
    verb: str
    path: str
    body: Any
    """Or the parameters, of a GET."""


class FakeApi:
    """Gives the answers of a table, in which a list is used up one by one, else what it was sent; and keeps what it was asked."""

    def __init__(self, answers: Mapping[tuple[str, str], Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.calls: list[Call] = []
        self.content_types: list[str] = []

    def told(self, verb: str) -> list[Call]:
        return [call for call in self.calls if call.verb == verb]

    async def get(self, path: str, *, params: Mapping[str, str] | None = None, **_: Any) -> Any:
        return self._answer("GET", path, dict(params) if params else None)

    async def create(self, path: str, body: Mapping[str, Any], **_: Any) -> Any:
        return self._answer("POST", path, body)

    async def patch(self, path: str, body: Any, *, content_type: str, **_: Any) -> Any:
        self.content_types.append(content_type)
        return self._answer("PATCH", path, body)

    async def delete(self, path: str, *, body: Mapping[str, Any] | None = None, **_: Any) -> Any:
        return self._answer("DELETE", path, body)

    def _answer(self, verb: str, path: str, body: Any) -> Any:
        self.calls.append(Call(verb, path, body))
        if (verb, path) not in self.answers:
            return body
        answer = self.answers[verb, path]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def refusal(status: int, reason: str = "", text: str = "no", *, retry_after: float | None = None) -> ApiError:
    return ApiError(status=status, reason=reason, message=text, retry_after=retry_after)
