"""Dialogues and texts: every common shape of a row to one payload, and payloads to tokens with a loss flag each.

A payload is `{"messages": [{"role", "content"}, ...]}` (laid out by the tokenizer's chat template), `{"prompt", "completion"}`
or `{"text"}` (taken as they are). Nothing is guessed from contents: `auto` goes by columns and their types alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainers.data.rows import Example, column
from trainers.data.spans import Dialogues, Messages, Span, flags
from trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from trainers.tasks.causal_lm import Data

SHAPES = {
    "messages": "a list of {role, content} in `messages`",
    "sharegpt": "a list of {from, value} in `conversations`",
    "prompt-completion": "`prompt` and `completion`",
    "alpaca": "`instruction`, `output` and perhaps `input`",
    "text": "`text`",
}
ROLES = ("system", "user", "assistant", "developer", "tool")
SPEAKERS = {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant") | {role: role for role in ROLES}
UNHEARD = ("tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")
Payload = dict[str, Any]


def examples(table: pa.Table, data: Data, first: int = 1) -> list[Example]:
    """One example a row, in order; rows without text or without an assistant's words are blank.

    Args:
        first: the number of the first row, for messages.

    Raises:
        UserError: the shape is not known, a column is missing or of another type; or, unless `data.on_bad_row` is "drop", a
            turn cannot be read (its row is named).
    """
    payloads = READERS[data.format if data.format != "auto" else _shape(table, data)](table, data)
    found = [_example(payload) for payload in payloads]
    for number, example in enumerate(found, first):
        if example.problem and data.on_bad_row == "stop":
            raise UserError(f"row {number}, {example.problem.message}", key=example.problem.key)
    return found


def _example(payload: Payload | UserError | None) -> Example:
    if payload is None or isinstance(payload, UserError):
        return Example("", None, None, problem=payload)
    # a system prompt that many rows share makes no near duplicates of them
    said = [m["content"] for m in payload.get("messages", []) if m["role"] != "system"] or list(payload.values())
    return Example(json.dumps(payload, ensure_ascii=False, sort_keys=True), None, payload, words="\n".join(said))


class Template:
    """Payloads to tokens. The chat template is looked at when the first dialogue comes, so texts need none."""

    def __init__(self, tokenizer: Any, loss_on: str) -> None:
        self.tokenizer, self.all = tokenizer, loss_on == "all"

    def encode(self, payload: Payload) -> tuple[list[int], list[bool]]:
        """Token ids, not cut, and which of them carry loss. Raises UserError where the template cannot lay the dialogue out."""
        if "messages" in payload:
            if self.all:
                ids, _ = self._tokens(self._dialogues.render(payload["messages"])[0], None)
                return ids, [True] * len(ids)
            return self._tokens(*self._dialogues.spans(payload["messages"], payload.get("context", 0)))
        prompt, said = payload.get("prompt", ""), payload["completion"] if "prompt" in payload else payload["text"]
        whole = self.all or not prompt
        ids, supervised = self._tokens(prompt + said, None if whole else [(len(prompt), len(prompt) + len(said))])
        opening, closing = self._around
        opening = [] if ids[: len(opening)] == opening else opening  # a text may say <s> itself
        closing = [] if closing and ids[-len(closing) :] == closing else closing
        return [*opening, *ids, *closing], [whole] * len(opening) + supervised + [True] * len(closing)

    @cached_property
    def _dialogues(self) -> Dialogues:
        return Dialogues(self.tokenizer)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Special tokens that the tokenizer puts before and after a text; the end-of-text token closes it in any case."""
        bare, full = (self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), len(full))
        opening, closing, eos = full[:at], full[at + len(bare) :], self.tokenizer.eos_token_id
        return opening, closing if eos is None or eos in closing else [*closing, eos]

    def _tokens(self, text: str, spans: list[Span] | None) -> tuple[list[int], list[bool]]:
        """Token ids, and which lie in the spans; None: all of them."""
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        if spans is None:
            ids = self.tokenizer(text, **options)["input_ids"]
            return ids, [True] * len(ids)
        try:
            encoding = self.tokenizer(text, return_offsets_mapping=True, **options)
        except NotImplementedError:
            raise UserError(
                "its tokenizer cannot say which characters a token stands for; take a model with a tokenizer.json, or set data.loss_on: all", key="model"
            ) from None
        return encoding["input_ids"], flags(text, encoding["offset_mapping"], spans)


def _shape(table: pa.Table, data: Data) -> str:
    """Which shape the columns have; columns that the job names itself come first."""
    named = {key for key in ("messages", "prompt", "completion", "text") if getattr(data, key) != type(data).model_fields[key].default}
    for key in sorted(named):
        column(table, f"data.{key}", getattr(data, key))
    names = set(table.column_names)
    found: dict[str, set[str]] = {}
    for name in [data.messages] if data.messages else ["messages", "conversations"]:
        shape = _turns_shape(table.schema.field(name).type) if name in names else None
        if shape and not found:
            found[shape] = {"messages"}
    if {data.prompt, data.completion} <= names:
        found["prompt-completion"] = {"prompt", "completion"}
    if {"instruction", "output"} <= names:
        found["alpaca"] = set()
    if data.text in names:
        found["text"] = {"text"}
    if not found:
        columns = ", ".join(f"{field.name} ({field.type})" for field in table.schema) or "none"
        shapes = "; ".join(f"{name}: {what}" for name, what in SHAPES.items())
        raise UserError(f"the columns have no shape that is known: {columns}. Known are {shapes}. Name the columns under data:", key="data.format")
    return min(found, key=lambda shape: not found[shape] & named)


def _turns_shape(kind: pa.DataType) -> str | None:
    """The shape that a column of turns has, by the fields of a turn; None for another column."""
    import pyarrow.types as types

    if types.is_null(kind) or (_is_list(kind) and types.is_null(kind.value_type)):
        return "messages"
    fields = {field.name for field in kind.value_type} if _is_list(kind) and types.is_struct(kind.value_type) else set()
    return "messages" if {"role", "content"} & fields else "sharegpt" if {"from", "value"} & fields else None


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _values(table: pa.Table, key: str, name: str, *, text: bool = False, turns: bool = False) -> list[Any]:
    """A column's values: texts, lists of turns, or either. Raises UserError for a column of another type."""
    import pyarrow.types as types

    values = column(table, key, name)
    kind = values.type.value_type if types.is_dictionary(values.type) else values.type
    fits = (text and (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))) or (turns and _is_list(kind))
    if not fits and not types.is_null(kind):
        wanted = " or ".join(["text"] * text + ["a list of turns"] * turns)
        raise UserError(f"column {name!r} holds {kind}, not {wanted}", key=key)
    return values.to_pylist()


def _turns(turns: list[Any], key: str, speaker: str, said: str, role_of: Callable[[str], str]) -> Messages:
    """Turns as messages. `speaker` and `said` are the fields that name the role and hold the content."""
    messages = []
    for number, turn in enumerate(turns, 1):
        where = f"turn {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{where}: is {turn!r:.40}, not {{{speaker}, {said}}}", key=key)
        for field in UNHEARD:
            if turn.get(field):
                raise UserError(f"{where}: has {field}, which cannot be trained on yet; write it into {said}, or remove the field or the row", key=key)
        for field in (speaker, said):
            if not isinstance(turn.get(field), str):
                wrong = "is missing" if turn.get(field) is None else f"is {type(turn[field]).__name__}, not text"
                raise UserError(f"{where}: {field} {wrong}", key=key)
        try:
            messages.append({"role": role_of(turn[speaker]), "content": turn[said]})
        except ValueError as error:
            raise UserError(f"{where}: {speaker} {error}", key=key) from None
    return messages


def _role(name: str) -> str:
    """Any role that the template may know, but not a misspelt one: its turns would carry no loss, and nobody would notice."""
    if name not in ROLES and (meant := SPEAKERS.get(name.strip().lower()) or next(iter(difflib.get_close_matches(name.lower(), ROLES, 1, 0.8)), None)):
        raise ValueError(f"{name!r} is not a role; write {meant}")
    return name


def _speaker(name: str) -> str:
    if name not in SPEAKERS:
        raise ValueError(f"{name!r} is not one of {', '.join(SPEAKERS)}; rename it, or remove the row")
    return SPEAKERS[name]


def _speaks(messages: Messages) -> bool:
    return any(message["role"] == "assistant" and message["content"].strip() for message in messages)


def _messages(table: pa.Table, data: Data) -> list[Payload | UserError | None]:
    return _dialogues(table, data, ("messages", "conversations"), "role", "content", _role)


def _sharegpt(table: pa.Table, data: Data) -> list[Payload | UserError | None]:
    return _dialogues(table, data, ("conversations", "messages"), "from", "value", _speaker)


def _dialogues(table: pa.Table, data: Data, names: tuple[str, ...], speaker: str, said: str, role_of: Callable[[str], str]) -> list[Payload | UserError | None]:
    """The first of the usual columns that holds lists, unless the job names one."""
    name = data.messages or next((name for name in names if name in table.column_names and _is_list(table.schema.field(name).type)), names[0])
    rows = _values(table, "data.messages", name, turns=True)
    return [_dialogue(lambda turns=turns: _turns(turns or [], "data.messages", speaker, said, role_of)) for turns in rows]  # type: ignore[misc]


def _dialogue(read: Callable[[], Messages]) -> Payload | UserError | None:
    try:
        messages = read()
    except UserError as problem:
        return problem
    return {"messages": messages} if _speaks(messages) else None


def _prompt_completion(table: pa.Table, data: Data) -> list[Payload | UserError | None]:
    """Texts stay texts; with messages on either side the row is a dialogue, and only the completion's turns carry loss."""
    prompts = _values(table, "data.prompt", data.prompt, text=True, turns=True)
    completions = _values(table, "data.completion", data.completion, text=True, turns=True)
    payloads: list[Payload | UserError | None] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if any(side is None or not (side.strip() if isinstance(side, str) else side) for side in (prompt, completion)):
            payloads.append(None)
        elif isinstance(prompt, str) and isinstance(completion, str):
            payloads.append({"prompt": prompt, "completion": completion})
        else:
            try:
                asked, told = _side(prompt, "user", "data.prompt"), _side(completion, "assistant", "data.completion")
            except UserError as problem:
                payloads.append(problem)
                continue
            # `context`, the number of messages that carry no loss, only where it says something: equal dialogues stay equal
            context = {"context": len(asked)} if any(message["role"] == "assistant" for message in asked) else {}
            payloads.append({"messages": asked + told, **context} if _speaks(told) else None)
    return payloads


def _side(value: Any, role: str, key: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else _turns(value, key, "role", "content", _role)


def _alpaca(table: pa.Table, data: Data) -> list[Payload | UserError | None]:
    instructions, outputs = (_values(table, "data.format", name, text=True) for name in ("instruction", "output"))
    inputs = _values(table, "data.format", "input", text=True) if "input" in table.column_names else [None] * len(outputs)
    return [
        {"messages": [{"role": "user", "content": f"{ask}\n\n{more}" if more and more.strip() else ask}, {"role": "assistant", "content": answer}]}
        if ask and ask.strip() and answer and answer.strip()
        else None
        for ask, more, answer in zip(instructions, inputs, outputs, strict=True)
    ]


def _text(table: pa.Table, data: Data) -> list[Payload | UserError | None]:
    return [{"text": text} if text and text.strip() else None for text in _values(table, "data.text", data.text, text=True)]


READERS: dict[str, Callable[[pa.Table, Data], list[Payload | UserError | None]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
    "text": _text,
}
