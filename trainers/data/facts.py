"""What cleaning and splitting need to know of every row, in a few arrays: 30 bytes a row, and 128 more for near duplicates.

The rows themselves stay where they are: a source of any size is scanned once for its facts, decided about as a whole
(`trainers.data.split`), and read again to be tokenised.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from trainers.data import minhash
from trainers.data.order import Ints
from trainers.data.rows import Example
from trainers.job import Data

FINE, MISSING, ENCODING, UNREADABLE = range(4)
"""What is wrong with a row by itself."""

_BROKEN = re.compile("[\ufffd\ud800-\udfff\x00-\x08\x0b\x0e-\x1f]")
"""Replacement characters, lone surrogates and control characters: what is left of text read in another encoding."""


@dataclass(frozen=True, eq=False)
class Facts:
    """One element a row, in the order of the source."""

    state: NDArray[np.uint8]
    """`FINE`, `MISSING`, `ENCODING` or `UNREADABLE`."""
    content: NDArray[np.uint64]
    """Hash of the content (BLAKE2b, 128 bits), shape `[rows, 2]`."""
    label: NDArray[np.int32]
    """Number of the label in `labels`; -1: none."""
    group: NDArray[np.uint64]
    """Hash of `data.group_by`'s value; 0: none."""
    size: NDArray[np.int32]
    """Bytes of the content."""
    sketch: minhash.Sketches
    """Shape `[rows, BINS]`, or `[rows, 0]` where near duplicates are not looked for."""
    labels: list[str]

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def of(cls, examples: Sequence[Example], data: Data) -> Facts:
        """The facts of some rows."""
        labels = sorted({example.label for example in examples if example.label is not None})
        number = {label: i for i, label in enumerate(labels)}
        contents = [example.content.encode("utf-8", "surrogatepass") for example in examples]
        hashes = b"".join(hashlib.blake2b(content, digest_size=16, person=b"muster-content").digest() for content in contents)
        near = data.clean.near_duplicates == "drop"
        return cls(
            state=np.array([_state(example, data) for example in examples], np.uint8),
            content=np.frombuffer(hashes, "<u8").reshape(-1, 2),
            label=np.array([-1 if example.label is None else number[example.label] for example in examples], np.int32),
            group=np.array([_group(example.group) for example in examples], np.uint64),
            size=np.array([len(content) for content in contents], np.int32),
            sketch=minhash.sketch([e.words if e.words is not None else e.content for e in examples]) if near else np.zeros((len(examples), 0), np.uint8),
            labels=labels,
        )

    @classmethod
    def join(cls, parts: Sequence[Facts]) -> Facts:
        """The rows of one behind those of the other; labels numbered anew, in order of spelling."""
        labels = sorted({label for part in parts for label in part.labels})
        numbers = [np.array([*np.searchsorted(labels, part.labels), -1], np.int32) for part in parts]
        arrays = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls) if f.name not in ("label", "labels")}
        label = np.concatenate([number[part.label] for number, part in zip(numbers, parts, strict=True)])
        return cls(**arrays, label=label, labels=labels)

    def to_bytes(self) -> bytes:
        """As an object of a store."""
        file = io.BytesIO()
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "labels"}
        np.savez(file, labels=np.frombuffer(json.dumps(self.labels).encode(), np.uint8), **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Facts:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls) if f.name != "labels"}, labels=json.loads(arrays["labels"].tobytes()))

    def take(self, rows: Ints) -> Facts:
        """These rows."""
        return Facts(**{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "labels"}, labels=self.labels)


def _state(example: Example, data: Data) -> int:
    if example.problem is not None:
        return UNREADABLE
    if example.payload is None:
        return MISSING
    return ENCODING if data.clean.encoding == "drop" and _BROKEN.search(example.content) else FINE


def _group(name: str | None) -> int:
    if name is None:
        return 0
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, person=b"muster-group").digest(), "little") | 1
