"""A token server on 127.0.0.1, as `docker-registry` trusts one: its tokens are JWTs signed with `openssl`.

    with TokenServer(tmp_path, {"ann": "secret"}, lifetime=3) as tokens:
        with docker_registry(tmp_path / "registry", token=tokens.configuration) as host:
            ...
        assert tokens.granted > 1

The registry takes a token until it expires, to the second: `lifetime` is how long that is, `claimed` how long
the server says that it is (`expires_in`; None: it does not say).
"""

from __future__ import annotations

import base64
import json
import math
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.web_server import Handler, WebServer

_LEEWAY = 60  # seconds that docker-registry takes a token beyond its end (registry/auth/token, Leeway)
_ISSUER, _SERVICE = "imgfs-tests", "registry.test"


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """Return a certificate for the host `name`, which is its own authority, and its key: PEM files."""
    made = directory / "certificate.pem", directory / "key.pem"
    directory.mkdir(parents=True, exist_ok=True)
    names = f"subjectAltName=DNS:{name},IP:127.0.0.1"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run(
        [*words, "-addext", names, "-out", made[0], "-keyout", made[1]], check=True, capture_output=True
    )
    return made


class TokenServer(WebServer):
    """Gives tokens to `users`, by their passwords, and for `refresh` tokens: a context manager.

    Set the attributes freely: who is known, `allowed` actions of everybody, and how long tokens live.
    `asked` are the users who asked, "" for a refresh token, None for nobody; `granted` how many got a token.
    """

    def __init__(
        self, directory: Path, users: Mapping[str, str], *, lifetime: int = 60, claimed: int | None = None
    ) -> None:
        super().__init__(_Handler)
        self.users = dict(users)
        self.refresh: set[str] = set()
        self.posting = True
        self.lifetime = lifetime
        self.claimed = claimed
        self.asked: list[str | None] = []
        self.granted = 0
        self._certificate, self._key = certificate(directory / "token-server", "localhost")
        self._lock = threading.Lock()

    @property
    def realm(self) -> str:
        """The URL that tokens are asked of."""
        return f"{self.url}/token"

    @property
    def configuration(self) -> dict[str, str]:
        """What docker-registry has to know (`auth.token`)."""
        return {
            "realm": self.realm,
            "service": _SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(self._certificate),
        }

    def answer(self, authorization: str, asked: Mapping[str, list[str]], *, posted: bool) -> tuple[int, Any]:
        """Status and document for a request with these parameters (`spec/auth/token.md`, `oauth.md`)."""
        if posted and not self.posting:
            return 404, {}
        user = self._user(authorization, asked)
        with self._lock:
            self.asked.append(user)
            if user is None:
                return 401, {"details": "wrong user or password"}
            self.granted += 1
            number = self.granted
        token = self._sign(user, number, " ".join(asked.get("scope", [])).split())
        claimed = {} if self.claimed is None else {"expires_in": self.claimed}
        return 200, {("access_token" if posted else "token"): token, **claimed}

    def _user(self, authorization: str, asked: Mapping[str, list[str]]) -> str | None:
        if asked.get("grant_type") == ["refresh_token"]:
            return "" if set(asked["refresh_token"]) <= self.refresh else None
        scheme, _, pair = authorization.partition(" ")
        user, _, password = base64.b64decode(pair).decode().partition(":")
        return user if scheme == "Basic" and self.users.get(user) == password else None

    def _sign(self, user: str, number: int, scopes: list[str]) -> str:
        """Return a JSON Web Token (RFC 7519) with the certificate of its key in its header."""
        now = math.ceil(time.time())  # a token of a second lives for one at least
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(_body_of(self._certificate))]}
        claims = {
            "iss": _ISSUER,
            "aud": _SERVICE,
            "sub": user,
            "jti": str(number),
            "nbf": now - _LEEWAY,
            "iat": now,
            "exp": now - _LEEWAY + self.lifetime,
            "access": [_access(scope) for scope in scopes],
        }
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        words = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        done = subprocess.run(words, input=signed.encode(), check=True, capture_output=True)
        return f"{signed}.{_encode(done.stdout)}"


def _body_of(pem: Path) -> list[str]:
    return [line for line in pem.read_text().splitlines() if "-----" not in line]


def _access(scope: str) -> dict[str, Any]:
    kind, name, actions = scope.split(":")
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _encode(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


class _Handler(Handler):
    def answer(self) -> None:
        posted = self.command == "POST"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        asked = parse_qs(body if posted else urlsplit(self.path).query)
        tokens: TokenServer = self.owner
        status, fields = tokens.answer(self.headers.get("Authorization", ""), asked, posted=posted)
        self.reply(status, json.dumps(fields).encode())
