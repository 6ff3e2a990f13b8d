"""YAML with places: what is read, where it stands, and one line for everything that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainers import yamlfile
from trainers.errors import UserError
from trainers.yamlfile import parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5e3", 500.0),
        ("3.0e-05", 3e-5),
        ("-2e-3", -2e-3),
        ("7", 7),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("2024-01-31", "2024-01-31"),
        ("off", False),
        ("null", None),
        ("'off'", "off"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    read = parse(f"x: {text}", "f").values["x"]
    assert read == value and type(read) is type(value)


def test_places_of_keys_and_list_items() -> None:
    document = parse("a: 1\nb:\n  c:\n    - x\n    - y\n", "f.yaml")
    assert document.where(("a",)) == "f.yaml:1"
    assert document.where(("b", "c")) == "f.yaml:3"
    assert document.where(("b", "c", 1)) == "f.yaml:5"
    assert document.where(("b", "not", "there")) == "f.yaml:2", "the nearest ancestor that was written"
    assert document.where(("nothing",)) == "f.yaml:1"


def test_merges_may_be_overridden_and_keys_know_their_lines() -> None:
    document = parse("base: &b {lr: 1, eps: 2}\nuse:\n  <<: *b\n  lr: 3\n", "f")
    assert document.values["use"] == {"lr": 3, "eps": 2}
    assert document.where(("use", "lr")) == "f:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a: is written twice (first on line 1); keep one"),
        ("t:\n  a: 1\n  a: 3", "f:3: t.a: is written twice (first on line 2); keep one"),
        ("a: [1, 2", "f:1: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n  b: 2", "f:2: is not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "f:2: is not valid YAML: found character '\\t' that cannot start any token"),
        ("a: \x00", "f: is not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("", "f: is empty"),
        ("# nothing", "f: is empty"),
        ("[1, 2]", "f: must hold keys and values, such as `task: causal-lm`"),
        ("a: 1\n---\nb: 2", "f:2: is not valid YAML: but found another document"),
        ("1: 2", "f:1: the key '1' must be a word; quote it if it is meant as text"),
        ("off: 2", "f:1: the key 'off' must be a word; quote it if it is meant as text"),
        ("? [a]\n: 2", "f:1: the key here must be a word; quote it if it is meant as text"),
        ("a: *b", "f:1: is not valid YAML: found undefined alias 'b'"),
        ("a: &a [*a]", "f:1: an alias contains itself"),
        ("a: 1\nb: !!int abc", "f:2: 'abc' cannot be read as int"),
        ("a: !!int ''", "f:1: '' cannot be read as int"),
        ("a: !!bool maybe", "f:1: 'maybe' cannot be read as bool"),
        ("a: !!timestamp x", "f:1: 'x' cannot be read as timestamp"),
        ("a: !!python/object:os.system x", "f:1: is not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: " + "9" * 5000, f"f:1: {'9' * 5000!r:.60} cannot be read as int"),
        ("a: 0x" + "f" * 5000, "f:1: the number is too large"),
        ('a: "\\ud800"', "f:1: '\\ud800' holds a character that no file name or text can hold"),
        ('a: "\\0"', "f:1: '\\x00' holds a character that no file name or text can hold"),
        ("a: " + "[" * 3000, "f: is nested too deeply"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcde", "bcdef", strict=True)),
            "f:1: holds more than 100,000 values; is an alias repeated too often?",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "f")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value) == message


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    for path, message in [
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path, "is a folder; a YAML file is wanted"),
        (tmp_path / "latin.yaml", "is not UTF-8 text (byte 6)"),
        (tmp_path / "latin.yaml" / "x", "cannot be read: Not a directory"),
        (tmp_path / ("n" * 300), "cannot be read: File name too long"),
    ]:
        with pytest.raises(UserError) as caught:
            yamlfile.read(path)
        assert str(caught.value) == f"{path}: {message}"


def test_set_overrides_makes_and_replaces() -> None:
    document = parse("train:\n  epochs: 1\nlist: [1, 2]\n", "f")
    for assignment in ("train.optimizer.lr=1e-4", "train.epochs=2", "list=[3]", "name=a=b", "scale=", "note= x "):
        document.set(assignment)
    assert document.values == {"train": {"epochs": 2, "optimizer": {"lr": 1e-4}}, "list": [3], "name": "a=b", "scale": None, "note": "x"}
    assert document.where(("train", "optimizer")) == "--set train.optimizer.lr=1e-4"
    assert document.where(("train", "epochs")) == "--set train.epochs=2"
    assert document.where(("list", 1)) == "--set list=[3]"
    assert document.where(("train",)) == "f:1"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train", "write --set KEY=VALUE, for example --set train.optimizer.lr=1e-4"),
        ("=1", "write --set KEY=VALUE, for example --set train.optimizer.lr=1e-4"),
        ("a..b=1", "write --set KEY=VALUE, for example --set train.optimizer.lr=1e-4"),
        ("a.b=1", "a is 1 and has no keys below it"),
        ("b={x", "is not valid YAML: expected ',' or '}', but got '<stream end>'"),
    ],
)
def test_set_that_cannot_be(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse("a: 1", "f").set(assignment)
    assert str(caught.value) == f"--set {assignment}: {message}"


def test_blame_adds_the_place_of_the_errors_own_key_first() -> None:
    document = parse("a: 1\nb: 2\n", "f")
    for error, key, message in [
        (UserError("bad"), "b", "f:2: b: bad"),
        (UserError("bad", key="a"), "b", "f:1: a: bad"),
        (UserError("bad", key="a"), "", "f:1: a: bad"),
        (UserError("bad", where="here"), "b", "here: bad"),
        (UserError("bad"), "", "bad"),
    ]:
        with pytest.raises(UserError) as caught, document.blame(key):
            raise error
        assert str(caught.value) == message
    with pytest.raises(ZeroDivisionError), document.blame("a"):
        _ = 1 / 0


def test_a_message_is_one_line_whatever_it_holds() -> None:
    assert str(UserError("a\nb\x1b[31m\u2028c")) == "a\\nb\\x1b[31m\\u2028c"


def test_dump_reads_back_to_the_same_values() -> None:
    values = {
        "a": "1e-4",
        "b": 1e-4,
        "c": "off",
        "d": "2024-01-01",
        "e": None,
        "f": [1, "1", "é\n ü", ""],
        "g": {"h": 1e-8, "i": "x" * 300},
        "j": "~",
        "k": ".5e3",
    }
    again = parse(yamlfile.dump(values), "f").values
    assert again == values and list(again) == list(values)
