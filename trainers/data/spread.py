"""The same function over many items: here, one after the other, or on all CPUs of a Ray cluster by Ray Data.

What a function makes goes into a store; what it returns is small. Errors come back as values, since Ray wraps what is raised.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from trainers.errors import MusterError

T = TypeVar("T")
R = TypeVar("R")

SAY_EVERY_S = 10.0


def spread(act: Callable[[T], R], items: Sequence[T], on_ray: bool, say: Callable[[str], None], doing: str) -> list[R]:
    """`[act(item) for item in items]`, on the running Ray if so wished; `say` hears "`doing`, 3 of 40" now and then.

    Raises:
        MusterError: what `act` raised, of the first item that failed; the others are not waited for.
    """
    results: dict[int, R] = {}
    said = time.monotonic()
    for number, result in _on_ray(act, items) if on_ray else _here(act, items):
        results[number] = result
        if time.monotonic() - said > SAY_EVERY_S and len(results) < len(items):
            say(f"{doing}, {len(results)} of {len(items)} pieces done")
            said = time.monotonic()
    return [results[i] for i in range(len(items))]


def _here(act: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    for number, item in enumerate(items):
        yield number, act(item)


def _on_ray(act: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    if not items:
        return
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def one(row: dict[str, Any]) -> dict[str, Any]:
        number, item = pickle.loads(row["item"])
        try:
            return {"number": number, "result": pickle.dumps((act(item), None))}
        except MusterError as error:
            return {"number": number, "result": pickle.dumps((None, error))}

    rows = [{"item": pickle.dumps(numbered)} for numbered in enumerate(items)]
    for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(one).iter_rows():
        result, error = pickle.loads(row["result"])
        if error is not None:
            raise error
        yield row["number"], result
