"""Objects of the API server, as the administrator sees them: kubectl takes a tenth of a second to say the same."""

import http.client
import json
import ssl
import time
import urllib.parse
from typing import Any

from tests.cluster.cluster import Cluster


class Api:
    def __init__(self, cluster: Cluster) -> None:
        self._host = urllib.parse.urlsplit(cluster.api_url).netloc
        pki = cluster.layout.pki
        self._trust = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._trust.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def get(self, path: str, **query: str) -> Any:
        """None when it is not there."""
        return self._ask("GET", f"{path}?{urllib.parse.urlencode(query)}")

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, json.dumps(body))

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        status, text = self._answer(method, path, body)
        while status == 429:  # come again: its storage of a new resource is being made
            time.sleep(0.5)
            status, text = self._answer(method, path, body)
        if status == 404:
            return None
        assert status < 300, f"{method} {path}: {status} {text.decode()[:500]}"
        return json.loads(text)

    def _answer(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(self._host, context=self._trust, timeout=20)
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
