"""Near-duplicate texts: MinHash sketches, and clusters of rows whose sketches agree.

Similarity is the Jaccard index of two texts' sets of shingles: `SHINGLE` bytes of UTF-8 in a row, lower case, runs of white
space as one space. A sketch is one permutation hash with `BINS` bins (Li, Owen & Zhang 2012), empty bins filled by rotation
(Shrivastava & Li 2014), 8 bits kept of each (b-bit minwise hashing, Li & König 2010): 128 bytes a row, standard deviation of
the estimate at 0.9: 0.027. Candidates come from `BANDS` bands (locality-sensitive hashing): a pair of similarity 0.9 is found
with probability 0.9999, one of 0.8 with 0.94. Every step is fixed arithmetic: the same texts give the same clusters anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainers.data.order import Ints

SHINGLE = 5
LEAST = 64
"""Shingles that a text needs. A shorter one is like itself alone: one other word takes it far from 0.9, and with words in
another order, or repeated, its set of shingles says too little."""
BINS = 128
BANDS = 16
ROUNDS = 32
"""Most distinct leaders that a row is compared with in one band: a bound on the work that a common band costs."""
TEXT_BYTES = 1 << 20
"""Texts are worked on about so many bytes at a time."""

Sketches = NDArray[np.uint8]


def sketch(texts: Sequence[str]) -> Sketches:
    """Sketches of texts, shape `[len(texts), BINS]`."""
    plain = [" ".join(text.lower().split()).encode("utf-8", "surrogatepass").ljust(SHINGLE, b"\0") for text in texts]
    parts, start, held = [np.zeros((0, BINS), np.uint8)], 0, 0
    for i, data in enumerate(plain, 1):
        held += len(data)
        if held >= TEXT_BYTES or i == len(plain):
            parts.append(_sketch(plain[start:i]))
            start, held = i, 0
    return np.concatenate(parts)


def similarity(a: Sketches, b: Sketches) -> NDArray[np.float64]:
    """Estimated Jaccard index of rows of `a` with rows of `b`, shape `[rows]`; chance agreement of 8 bits is taken out."""
    return ((a == b).mean(axis=1) - 1 / 256) / (1 - 1 / 256)


def similar_pairs(sketches: Sketches, least: float) -> tuple[Ints, Ints]:
    """Pairs (earlier row, later row) of similarity `least` or more, enough of them to connect each cluster."""
    earlier, later = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for band in np.split(sketches, BANDS, axis=1):
        keys = np.ascontiguousarray(band).view(np.uint64)[:, 0]
        rows = np.argsort(keys, kind="stable")
        for _ in range(ROUNDS):  # each row against the first of its run; those unlike it form the next round's runs
            first = _run_starts(keys[rows])
            leader = rows[first]
            behind = leader != rows
            leader, rows = leader[behind], rows[behind]
            if not len(rows):
                break
            alike = _alike(sketches, leader, rows, least)
            earlier.append(leader[alike])
            later.append(rows[alike])
            rows = rows[~alike]
    return np.concatenate(earlier), np.concatenate(later)


def _sketch(texts: list[bytes]) -> Sketches:
    data = np.frombuffer(b"".join(texts), np.uint8).astype(np.uint64)
    lengths = np.array([len(text) for text in texts])
    counts = lengths - SHINGLE + 1
    rows = np.repeat(np.arange(len(texts)), counts)
    at = np.arange(len(rows)) + np.repeat(np.cumsum(lengths) - lengths - (np.cumsum(counts) - counts), counts)
    shingles = np.zeros(len(at), np.uint64)
    for i in range(SHINGLE):
        shingles |= data[at + i] << np.uint64(8 * i)
    hashes = _mix(shingles)
    least = np.full(len(texts) * BINS, np.iinfo(np.uint32).max, np.uint32)
    np.minimum.at(least, rows * BINS + (hashes % np.uint64(BINS)).astype(np.int64), (hashes >> np.uint64(33)).astype(np.uint32))
    sketches = _densified(least.reshape(-1, BINS))
    for i in np.flatnonzero(counts < LEAST).tolist():
        sketches[i] = np.frombuffer(hashlib.shake_128(texts[i]).digest(BINS), np.uint8)
    return sketches


def _densified(least: NDArray[np.uint32]) -> Sketches:
    """Empty bins take the next filled one's value and the distance to it; then 8 bits of each value."""
    filled = least != np.iinfo(np.uint32).max
    places = np.where(np.tile(filled, 2), np.arange(2 * BINS), 2 * BINS)
    following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :BINS]
    values = np.take_along_axis(least, following % BINS, axis=1).astype(np.uint64)
    distance = (following - np.arange(BINS)).astype(np.uint64)
    return (_mix(values << np.uint64(8) | distance) >> np.uint64(56)).astype(np.uint8)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014), with its increment added first."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _run_starts(ordered: NDArray[np.uint64]) -> Ints:
    """For each of some ordered keys, where its run of equal keys begins."""
    begins = np.ones(len(ordered), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return np.maximum.accumulate(np.where(begins, np.arange(len(ordered)), 0))


def _alike(sketches: Sketches, a: Ints, b: Ints, least: float, step: int = 1 << 16) -> NDArray[np.bool_]:
    parts = [similarity(sketches[a[i : i + step]], sketches[b[i : i + step]]) >= least for i in range(0, len(a), step)]
    return np.concatenate(parts)
