"""Sketches against exact Jaccard indices."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from trainers.data import minhash

pytestmark = pytest.mark.unit


def shingles(text: str) -> set[bytes]:
    data = " ".join(text.lower().split()).encode()
    return {data[i : i + minhash.SHINGLE] for i in range(max(1, len(data) - minhash.SHINGLE + 1))}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def texts(count: int, words: int) -> list[str]:
    draw = Random(count)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzäß", k=draw.randint(2, 9))) for _ in range(2000)]
    return [" ".join(draw.choices(known, k=words)) for _ in range(count)]


def changed(text: str, words: int, seed: int) -> str:
    draw, parts = Random(seed), text.split()
    for at in draw.sample(range(len(parts)), words):
        parts[at] = "".join(draw.choices("abcdefgh", k=6))
    return " ".join(parts)


@pytest.mark.parametrize("words", [0, 1, 2, 5, 10, 30])
def test_the_estimate_is_unbiased_with_the_stated_spread(words: int) -> None:
    pairs = [(text, changed(text, words, i)) for i, text in enumerate(texts(400, 60))]
    exact = np.array([jaccard(a, b) for a, b in pairs])
    error = minhash.similarity(minhash.sketch([a for a, _ in pairs]), minhash.sketch([b for _, b in pairs])) - exact
    assert abs(error.mean()) < 0.01 and error.std() < 0.05
    assert words or not error.any()


def test_pairs_connect_what_is_similar_and_nothing_else() -> None:
    base = texts(300, 80)
    every = [*base, *(changed(text, 1, i) for i, text in enumerate(base[:100])), *base[200:210]]
    earlier, later = minhash.similar_pairs(minhash.sketch(every), 0.9)
    found = set(zip(earlier.tolist(), later.tolist(), strict=True))
    expected = {*((i, 300 + i) for i in range(100) if jaccard(base[i], every[300 + i]) > 0.93), *((200 + i, 400 + i) for i in range(10))}
    assert len(expected) > 90 and expected <= found
    assert all(a < b and jaccard(every[a], every[b]) > 0.8 for a, b in found)


def test_a_text_costs_the_same_sketch_wherever_it_stands_and_case_and_space_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    some = ["", "a", "Ab", "  hello   World ", "日本語のテキスト", *texts(20, 30)]
    whole = minhash.sketch(some)
    monkeypatch.setattr(minhash, "TEXT_BYTES", 50)
    np.testing.assert_array_equal(minhash.sketch(some), whole)
    np.testing.assert_array_equal(minhash.sketch(["hello world"])[0], whole[3])
    assert minhash.sketch([]).shape == (0, minhash.BINS)


def test_short_texts_are_like_themselves_alone() -> None:
    rows = ["sun sea sun sea", "sea sun sea", "Sun  sea sun sea"]
    earlier, later = minhash.similar_pairs(minhash.sketch(rows), 0.8)
    assert set(earlier.tolist()) == {0} and set(later.tolist()) == {2}


def test_the_sketches_are_pinned() -> None:
    found = minhash.sketch(["the quick brown fox jumps over the lazy dog " * 3, "short"])[:, :4].tolist()
    assert found == PINNED, "prepared sets would change: raise prepare.VERSION"


PINNED = [[56, 215, 172, 106], [246, 222, 86, 0]]
