"""Claims `stream-datasets`, `stream-ray-data`: a shuffled pass over packed token rows in a distant bucket, against other readers.

All read the same Parquet objects from SeaweedFS through the proxy at 50 ms, in turns, each in a process of its own; MB/s of the objects'
bytes, from opening to the last row. Hugging Face datasets gets an environment of its own in build/benchmarks/envs (from PyPI).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import common
from common import WORK, say
from stream import SHAPES, URL, Opened, distant, put_set, tokens

from tests.lab import s3

LIBRARIES = {"datasets": ["datasets>=4,<6", "s3fs>=2025"], "ray-data": []}
"""And what their own environments hold; none: Muster's."""
SCRIPT = Path(__file__).resolve().parent / "reference" / "stream_readers.py"


def python(library: str) -> str:
    """The interpreter that has a library, its environment made if need be."""
    if not LIBRARIES[library]:
        return sys.executable
    folder = WORK / "envs" / library
    if not (folder / "ready").exists():
        say(f"installing {library} …")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *LIBRARIES[library]], check=True)
        (folder / "ready").touch()
    return str(folder / "bin" / "python")


def muster(opened: Opened) -> dict[str, float]:
    """A pass of Muster's own reader, the index read again."""
    began = time.perf_counter()
    again = Opened(URL, dict(os.environ), SHAPES[""][2])
    stream, first, rows = again.stream(), 0.0, 0
    for position in range(again.order.batches):
        rows += len(stream.batch(position)["label"])
        first = first or time.perf_counter() - began
    stream.close()
    return {"rows": rows, "first_s": first, "seconds": time.perf_counter() - began}


def other(library: str, urls: list[str]) -> dict[str, float]:
    """A pass of another reader."""
    done = common.run([python(library), str(SCRIPT), library, *urls], WORK / "logs" / f"stream-{library}.log", 900)
    return done.first("pass")


def main() -> None:
    options = common.arguments(__doc__ or "")
    turns, megabytes = (1, 100) if options.quick else (3, 400)
    shortest, longest, batch = SHAPES[""]
    for library in LIBRARIES:
        python(library)
    with TemporaryDirectory() as folder, s3.server(Path(folder) / "weed") as server, distant(server, 0) as near, distant(server, 50) as far:
        os.environ.update(near)
        put_set(URL, tokens(megabytes, shortest, longest))
        opened = Opened(URL, far, batch)
        urls = [f"{URL}/{file}" for file in opened.index.files]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ("muster", *LIBRARIES)}
        for turn in range(turns):
            for name, runs in found.items():
                runs.append(muster(opened) if name == "muster" else other(name, urls))
                assert runs[-1]["rows"] == opened.order.total, "every row once"
                say(f"turn {turn + 1} of {turns}: {name}: {json.dumps(runs[-1])}")
    speed = {name: median(opened.fetched / 1e6 / run["seconds"] for run in runs) for name, runs in found.items()}
    first = {name: median(run["first_s"] for run in runs) for name, runs in found.items()}
    claims = []
    for name in LIBRARIES:
        about = f"{speed['muster']:.0f} against {speed[name]:.0f} MB/s, first batch after {first['muster']:.2f} against {first[name]:.2f} s, at 50 ms"
        conditions = f"rows of {shortest} to {longest} tokens, {megabytes} MB; medians of {turns}; {common.machine()}"
        claims.append(common.claim(f"stream-{name}", speed["muster"] / speed[name], ">=", 1.0, f"{about}; {conditions}"))
    common.write(options.json, claims, found)


if __name__ == "__main__":
    main()
