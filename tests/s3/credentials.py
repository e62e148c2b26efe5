"""Who gives credentials to pods, as clouds have it: STS for a web identity's token (EKS's IRSA), and EKS Pod Identity's agent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

GRANTED = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken>
<Expiration>{until}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
REFUSED = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>{code}</Code>
<Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>"""


@dataclass
class Giver:
    """What it gives, and to whom: `token` and, of STS, `role` are what it expects."""

    key: str
    secret: str
    token: str
    role: str = ""
    session: str = ""
    """The session's token. The real S3 server knows no sessions, and takes the keys of one without a token."""
    refuses: str = ""
    """Everybody, with this code."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Actions and paths, in order."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, giver: Giver) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.giver = giver
        giver.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        """STS. It takes no signature: the token alone says who asks."""
        giver = self.server.giver
        asked = {
            name: values[0]
            for name, values in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()
        }
        giver.asked.append(asked["Action"])
        right = asked["WebIdentityToken"] == giver.token and asked["RoleArn"] == giver.role
        code = giver.refuses or ("" if right else "AccessDenied")
        if code:
            self._reply(403 if code == "AccessDenied" else 400, REFUSED.format(code=code))
            return
        self._reply(200, GRANTED.format(key=giver.key, secret=giver.secret, token=giver.session, until=_in_an_hour()))

    def do_GET(self) -> None:
        """The agent of EKS Pod Identity."""
        giver = self.server.giver
        giver.asked.append(self.path)
        if self.headers.get("Authorization") != giver.token:
            self._reply(403, "{}")
            return
        found = {"AccessKeyId": giver.key, "SecretAccessKey": giver.secret, "Token": giver.session}
        self._reply(200, json.dumps({**found, "Expiration": _in_an_hour()}))

    def _reply(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def _in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def giving(giver: Giver) -> Iterator[Giver]:
    with _Server(giver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield giver
        server.shutdown()
