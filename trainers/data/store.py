"""Objects by path, on this machine or in a bucket (s3://, gs://, az://), read and written the same way.

Reading is retried with backoff inside a stated budget. What does not pass by waiting (no such object, no permission) is told
at once, in one line that names the object.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from trainers.errors import RunError

T = TypeVar("T")

MEMORY = "memory:"
"""The URL of a store that lives as long as its `Store` does."""

BUDGET_S = 120.0
"""How long one read may take, retries and waiting together, before it is given up."""
TIMEOUT_S = 20.0
"""How long one request may take: a stalled one is dropped and asked again."""
RETRIES_DAMAGED = 4
"""How often an object whose bytes are wrong is asked again: a broken transfer passes, a changed object does not."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 8.0


class StorageError(RunError):
    """An object could not be read or written; the message names it."""


class Damaged(Exception):
    """What came is not what was asked for: too short, or with another checksum. Retried like a broken connection."""


class Object(NamedTuple):
    """An object of a store."""

    path: str
    size: int
    stamp: str


class Store:
    """Objects under one URL or folder. Safe to use from many threads; not to be carried through a fork.

    Args:
        url: `s3://bucket/prefix`, `gs://…`, `az://…`, a folder of this machine (made when first written to), or `MEMORY`.
        budget_s: see `BUDGET_S`.
    """

    def __init__(self, url: str, budget_s: float = BUDGET_S) -> None:
        self.url = url.rstrip("/")
        self.budget_s = budget_s
        try:
            self._inner = _open(self.url)
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise StorageError(f"cannot open {self.url}: {_line(error)}") from None
        self._closed = threading.Event()

    def __reduce__(self) -> Any:
        if self.url == MEMORY:
            raise TypeError("what is in memory stays in its process")
        return Store, (self.url, self.budget_s)

    def get(self, path: str, first: int, length: int, check: Callable[[memoryview], Any] | None = None) -> memoryview:
        """Bytes [first, first + length) of an object. `check` raises `Damaged` for bytes that it does not believe.

        Raises:
            StorageError: not within the budget; or never, for it is not there or not ours to read.
        """

        def read() -> memoryview:
            found = memoryview(self._obstore.get_range(self._inner, path, start=first, length=length))
            if len(found) != length:
                raise Damaged(f"{len(found)} bytes came instead of {length}; if it was changed, prepare the data again")
            if check:
                check(found)
            return found

        return self._patiently(read, path, "read")

    def whole(self, path: str) -> memoryview:
        """All of an object."""
        return self._patiently(lambda: memoryview(self._obstore.get(self._inner, path).bytes()), path, "read")

    def put(self, path: str, data: bytes | Path | IO[bytes]) -> None:
        """Writes an object, whole or not at all."""
        self._patiently(lambda: self._obstore.put(self._inner, path, data), path, "write")

    def has(self, path: str) -> bool:
        """Whether the object is there."""

        def look() -> bool:
            try:
                self._obstore.head(self._inner, path)
            except FileNotFoundError:
                return False
            return True

        return self._patiently(look, path, "look for")

    def delete(self, prefix: str) -> None:
        """Removes the objects whose path begins with `prefix`, and folders that are empty then."""
        paths = [o.path for o in self.list(prefix)]
        for start in range(0, len(paths), 1000):  # as many as S3 takes at once
            self._patiently(partial(self._obstore.delete, self._inner, paths[start : start + 1000]), prefix, "delete")

    def clear(self) -> None:
        """Removes everything in it, and its folder."""
        self.delete("")
        if not is_remote(self.url) and self.url != MEMORY:
            Path(self.url).rmdir()

    def list(self, prefix: str) -> list[Object]:
        """The objects whose path begins with `prefix`."""
        folder, _, _ = prefix.rpartition("/")

        def read() -> list[Object]:
            pages = self._obstore.list(self._inner, folder or None)
            return [Object(o["path"], o["size"], str(o["e_tag"] or o["last_modified"])) for page in pages for o in page]

        return [o for o in self._patiently(read, prefix, "list") if o.path.startswith(prefix)]

    def close(self) -> None:
        """Ends all waiting: what is being retried fails now."""
        self._closed.set()

    def name(self, path: str) -> str:
        """The object's full address, for messages."""
        return f"{self.url}/{path}"

    @property
    def _obstore(self) -> Any:
        import obstore
        import obstore.exceptions

        return obstore

    def _patiently(self, act: Callable[[], T], path: str, verb: str) -> T:
        from obstore.exceptions import BaseError

        began, wait, damaged = time.monotonic(), FIRST_WAIT_S, 0
        while True:
            try:
                return act()
            except (BaseError, OSError, Damaged) as error:
                final = self._final(error, path, verb)
                if final:
                    raise StorageError(final) from None
                spent, damaged = time.monotonic() - began, damaged + isinstance(error, Damaged)
                if spent + wait > self.budget_s or damaged > RETRIES_DAMAGED or self._closed.is_set():
                    raise StorageError(f"cannot {verb} {self.name(path)}, tried for {spent:.0f} s: {_line(error)}") from None
            self._closed.wait(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _final(self, error: Exception, path: str, verb: str) -> str:
        """What to say where waiting does not help; empty where it may (among others for credentials that expired and may be renewed)."""
        from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError

        text = str(error)
        status = re.search(r"status(?: code:)? (\d{3})", text)
        code = int(status[1]) if status else 0
        if "ExpiredToken" in text:
            return ""
        if "NoSuchBucket" in text:
            return f"there is no bucket {self.url.split('/')[2]!r} ({self.url})"
        if isinstance(error, (FileNotFoundError, NotFoundError)):
            return f"{self.name(path)} is not there (any more); prepare the data again"
        if isinstance(error, (PermissionError, PermissionDeniedError, UnauthenticatedError)) or code in (401, 403):
            action = f" ({_ACTIONS[verb]})" if self.url.startswith("s3://") else ""
            return f"no permission to {verb} {self.name(path)}{action}: {_line(error)}"
        if "redirect" in text.lower() or "AuthorizationHeaderMalformed" in text:
            return f"cannot {verb} {self.name(path)}: the bucket is in another region; set AWS_REGION to its own: {_line(error)}"
        if (not is_remote(self.url) and not isinstance(error, Damaged)) or (400 <= code < 500 and code not in (408, 409, 429)):
            return f"cannot {verb} {self.name(path)}: {_line(error)}"
        return ""


_ACTIONS = {"read": "s3:GetObject", "look for": "s3:GetObject", "write": "s3:PutObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject"}


def _line(error: BaseException) -> str:
    """The gist of a library's message: the server's own words where it quotes them."""
    text = " ".join(str(error).split())
    said = re.search(r"status(?: code:)? (\d{3}[^:]*)", text), re.search(r"<Message>(.*?)</Message>", text)
    quoted = ", ".join(m[1] if m.lastindex else m[0] for m in said if m)
    return quoted or text[:300] or type(error).__name__


def is_remote(location: str) -> bool:
    """Whether a location is a URL of a bucket, not a path of this machine."""
    return "://" in location


def _open(url: str) -> Any:
    from obstore.store import LocalStore, MemoryStore, S3Store, from_url

    if url == MEMORY:
        return MemoryStore()
    if not is_remote(url):
        return LocalStore(prefix=url, mkdir=True, automatic_cleanup=True)
    once: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=TIMEOUT_S)}  # retries are `Store`'s
    options: Any = {"timeout": timedelta(seconds=TIMEOUT_S), "connect_timeout": timedelta(seconds=5), "allow_http": True}
    if not url.startswith("s3://"):
        return from_url(url, client_options=options, retry_config=once)
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = session.client("s3")  # reads the endpoint from the environment and the AWS configuration
    custom = {} if "amazonaws.com" in client.meta.endpoint_url else {"endpoint": client.meta.endpoint_url, "virtual_hosted_style_request": False}
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=session.region_name or "us-east-1",
        credential_provider=Boto3CredentialProvider(session),
        client_options=options,
        retry_config=once,
        **custom,
    )
