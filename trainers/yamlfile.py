"""YAML with line numbers, and `--set KEY=VALUE` on top of it.

PyYAML composes the nodes, which know their lines; we walk them once to get plain values and a map from each key's path
to where it was written. Two departures from plain `safe_load`, both because users lose days to them: `1e-4` is a number
(YAML 1.1 reads it as text), and a key written twice is an error (YAML keeps the last one silently).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import UserError

Key = tuple[str | int, ...]
"""Path of a value: `("train", "optimizer", "lr")`; list positions are integers."""


class _Loader(yaml.SafeLoader):
    """SafeLoader whose floats include 1e-4, 1E5 and .5e3, and whose dates stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which `_Loader` would read as a number, such as "1e-4"."""


_Dumper.yaml_implicit_resolvers = {first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()}
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class Document:
    """The values of a YAML file (`values`, a dict) and where each key stands (`where(key)` gives `file:line`)."""

    def __init__(self, values: dict[str, Any], places: dict[Key, str]) -> None:
        self.values = values
        self._places = places

    def where(self, key: Key) -> str:
        """`file:line` of the key, or of its nearest ancestor that was written down."""
        while key and key not in self._places:
            key = key[:-1]
        return self._places.get(key, "")

    @contextmanager
    def blame(self, key: str) -> Iterator[None]:
        """Gives UserErrors raised inside the place of their own dotted key, or of `key` where they name none."""
        try:
            yield
        except UserError as error:
            key = error.key or key
            if error.where or not key:
                raise
            raise UserError(error.message, key=key, where=self.where(tuple(key.split(".")))) from None

    def set(self, assignment: str) -> None:
        """Applies one `--set KEY=VALUE`; VALUE is YAML, so `[a, b]`, `null` and `1e-4` work.

        Raises:
            UserError: no `=`, an empty key, a VALUE that is not YAML, or a KEY that goes through a plain value.
        """
        name, equals, text = assignment.partition("=")
        place = f"--set {assignment}"
        parts = name.strip().split(".")
        if not equals or not all(parts):
            raise UserError("write --set KEY=VALUE, for example --set train.optimizer.lr=1e-4", where=place)
        fresh = parse(text, place, numbered=False, top=dict | list | str | int | float | bool | None)
        target = self.values
        base: Key = tuple(parts)
        for depth, part in enumerate(parts[:-1]):
            if target.get(part) is None:
                target[part] = {}
                self._places[base[: depth + 1]] = place
            target = target[part]
            if not isinstance(target, dict):
                raise UserError(f"{'.'.join(parts[: depth + 1])} is {target!r} and has no keys below it", where=place)
        target[parts[-1]] = fresh.values
        self._places = {k: v for k, v in self._places.items() if k[: len(base)] != base}
        self._places[base] = place


def read(path: Path) -> Document:
    """Reads a YAML file whose top level is a mapping.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8, not YAML, not a mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder; a YAML file is wanted", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return parse(text, str(path))


def dump(values: dict[str, Any]) -> str:
    """The values as YAML that `parse` reads back to the same values, in the same order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, name: str, top: Any = dict, numbered: bool = True) -> Document:
    """Parses YAML `text`; `name` stands for the file in messages, with the line behind it if `numbered`. `values` must be an instance of `top`."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            places: dict[Key, str] = {}
            values = _Walk(loader, name, places, numbered).value(node, (), ()) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and numbered else name
        raise UserError(f"is not valid YAML: {error.problem or error.context}", where=where) from None
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML: {str(error).splitlines()[0]}", where=name) from None
    except RecursionError:
        raise UserError("is nested too deeply", where=name) from None
    if top is dict and not isinstance(values, dict):
        raise UserError("is empty" if values is None else "must hold keys and values, such as `task: causal-lm`", where=name)
    return Document(values, places)  # type: ignore[arg-type]


class _Walk:
    """From nodes to plain values, noting in `places` where each stands."""

    MOST_VALUES = 100_000
    """Aliases of aliases can make a small file mean billions of values."""

    def __init__(self, loader: _Loader, name: str, places: dict[Key, str], numbered: bool) -> None:
        self.loader, self.name, self.places, self.numbered = loader, name, places, numbered
        self.count = 0

    def value(self, node: yaml.Node, key: Key, parents: tuple[yaml.Node, ...]) -> Any:
        here = self.line(node)
        self.places.setdefault(key, here)
        self.count += 1
        if node in parents:
            raise UserError("an alias contains itself", where=here)
        if self.count > self.MOST_VALUES:
            raise UserError(f"holds more than {self.MOST_VALUES:,} values; is an alias repeated too often?", where=here)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key, (*parents, node))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*key, i), (*parents, node)) for i, item in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, key: Key, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        written: dict[str, yaml.Node] = {}
        for key_node, _ in node.value:  # before merges (`<<`) are put in, whose keys may be overridden
            word = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge" else "<<"
            if not isinstance(word, str) or (word == "<<" and not isinstance(key_node, yaml.ScalarNode)):
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "here"
                raise UserError(f"the key {shown} must be a word; quote it if it is meant as text", where=self.line(key_node))
            if word in written:
                first = written[word].start_mark.line + 1
                raise UserError(f"is written twice (first on line {first}); keep one", key=".".join(map(str, (*key, word))), where=self.line(key_node))
            written[word] = key_node
        self.loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            word = self.scalar(key_node)
            inner = (*key, word)
            self.places[inner] = self.line(key_node)
            values[word] = self.value(value_node, inner, parents)
        return values

    def scalar(self, node: yaml.Node) -> Any:
        try:
            value = self.loader.construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError):  # what PyYAML throws at `!!int abc`, `!!bool x`, `!!timestamp x`
            raise UserError(f"{node.value!r:.60} cannot be read as {node.tag.rpartition(':')[2]}", where=self.line(node)) from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError("the number is too large", where=self.line(node))
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{value!r:.60} holds a character that no file name or text can hold", where=self.line(node))
        return value

    def line(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.numbered else self.name
