"""Where a chat template puts the assistant's words: character spans of a rendered dialogue, and the tokens inside them.

Most templates do not mark what the assistant says, so it has to be found, and searching the text for it would be fooled
by a user who said the same. Instead the template renders the dialogue a second time with a stand-in for every assistant
content: what lies between the stand-ins must lie between the contents too. Two renderings a dialogue, whatever its length.

The span of a turn takes in the token that closes it (`<|im_end|>`, `</s>`), since a model that is not taught to stop does
not stop; the newline that many templates write after it is not the model's to say, and stays out.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Any

from trainers.errors import UserError

Span = tuple[int, int]
Messages = list[dict[str, str]]

MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Dialogues:
    """A tokenizer's chat template, and how it closes a turn.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "its tokenizer has no chat template, so dialogues cannot be laid out; "
                "take an instruction-tuned model, or give the rows as prompt-completion or text",
                key="model",
            )
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError as error:  # several named templates and none called default
            raise UserError(f"its tokenizer's chat template cannot be chosen: {error}", key="model") from None
        self.tokenizer = tokenizer
        self.marked = MARKS.search(self.source) is not None
        self.closing = self._closing()

    def render(self, *dialogues: Messages, prompt: bool = False) -> list[str]:
        """Each dialogue as text; with `prompt`, up to where the assistant's next turn begins.

        Raises:
            UserError: the template refuses a dialogue; its own words.
        """
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(list(dialogues), tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, TypeError) as error:
            turns = ", ".join(message["role"] for message in dialogues[0])
            raise UserError(
                f"its chat template refuses a dialogue of {turns}: {error}; change or remove such rows, or take a model whose template allows them",
                key="model",
            ) from None

    def spans(self, messages: Messages, context: int = 0) -> tuple[str, list[Span]]:
        """The rendered dialogue, and `[start, end)` of each assistant turn from number `context` on, in order.

        Raises:
            UserError: the template refuses the dialogue, or rewrites it so that its turns cannot be told apart.
        """
        if self.marked and not context:
            text, spans = self._by_marks(messages)
        else:
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            text, hidden, mark = self._with_stand_ins(messages, turns)
            found = _between(text, re.split(mark, self.render(hidden)[0]), [messages[i]["content"] for i in turns])
            spans = found if found is not None else self._by_prefixes(messages, turns, text, hidden, mark)
            spans = [span for i, span in zip(turns, spans, strict=True) if i >= context]
        return text, [self._closed(text, *span) for span in spans]

    def _by_marks(self, messages: Messages) -> tuple[str, list[Span]]:
        """The template's author says what the assistant generates."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        options = self.tokenizer.special_tokens_map
        try:
            rendered: Any = render_jinja_template([messages], chat_template=self.source, return_assistant_tokens_mask=True, **options)
        except (jinja2.TemplateError, TypeError):
            return self.render(messages)[0], []  # raises, with the message for the user
        (text,), (spans,) = rendered
        return text, spans

    def _with_stand_ins(self, messages: Messages, turns: list[int]) -> tuple[str, Messages, str]:
        """The rendered dialogue, the dialogue with stand-ins, and the pattern that matches one and captures its number."""
        text = self.render(messages)[0]
        word = "MusterTurn"
        while word in text:
            word += "Z"
        hidden = list(messages)
        for number, i in enumerate(turns):
            hidden[i] = {"role": "assistant", "content": f"{word}{number}Q"}
        return text, hidden, f"{word}([0-9]+)Q"

    def _by_prefixes(self, messages: Messages, turns: list[int], text: str, hidden: Messages, mark: str) -> list[Span]:
        """For templates that rewrite contents (Qwen3 drops the thoughts of earlier turns): turn by turn, two renderings each.

        A turn starts where the rendering of all messages before it ends, generation prompt included. It ends so many
        characters before the next one starts as the template puts between a stand-in and the next generation prompt.
        """
        for prompt in (True, False):  # some generation prompts say more than the turn will (DeepSeek-R1 opens <think>)
            try:
                before = [self.render(messages[:i], prompt=prompt)[0] if i else "" for i in turns] + [text]
                masked = [self.render(hidden[:i], prompt=prompt)[0] if i else "" for i in turns] + [self.render(hidden)[0]]
            except UserError:
                continue
            spans = [_turn(text, before[n : n + 2], masked[n : n + 2], mark.replace("([0-9]+)", str(n)), exact=not prompt) for n in range(len(turns))]
            found = [span for span in spans if span is not None]
            if len(found) == len(turns):
                return found
        raise UserError(
            "its chat template rewrites the assistant's turns so that they cannot be told from the rest of the dialogue; give the tokenizer "
            "a template with {% generation %} around what the assistant says, or set data.loss_on: all to learn every token",
            key="model",
        )

    def _closing(self) -> re.Pattern[str]:
        """What closes an assistant's turn, white space before it included; matches nothing where nothing does.

        Learnt from a dialogue of the template's own making. A token between two turns may also open the second, so
        one that does not close the last turn too has to have another after it.
        """
        eos = self.tokenizer.eos_token
        closing = {eos} if eos else set()
        special = "|".join(re.escape(token) for token in sorted(self.tokenizer.added_tokens_encoder, key=len, reverse=True) if not token.isspace())
        probe = [{"role": role, "content": f"Muster{n}Probe"} for n, role in enumerate(["user", "assistant"] * 2)]
        try:
            parts = re.split(r"Muster(?:[0-9])Probe", self.render(probe)[0])
        except UserError:
            parts = []
        if special and len(parts) == 5 and (last := re.match(rf"\s*({special})", parts[4])):
            closing.add(last[1])
            if (inner := re.match(rf"\s*({special})", parts[2])) and inner[1] != re.findall(special, parts[2])[-1]:
                closing.add(inner[1])
        return re.compile(r"\s*(?:" + "|".join(re.escape(token) for token in sorted(closing, key=len, reverse=True)) + ")" if closing else r"(?!)")

    def _closed(self, text: str, start: int, end: int) -> Span:
        """The span with the token that closes the turn, unless marks of the template's own have it inside already."""
        if self.marked:
            inside = list(self.closing.finditer(text, start, end))
            if inside and not text[inside[-1].end() : end].strip():
                return start, end
        closing = self.closing.match(text, end)
        return start, closing.end() if closing else end


def _between(text: str, parts: list[str], contents: list[str]) -> list[Span] | None:
    """Spans of the contents if the text is the literals with the contents between them, trimmed or not; else None.

    `parts` alternates literals with the stand-ins' numbers: `[literal, "0", literal, "1", literal]`.
    """
    literals = parts[::2]
    if parts[1::2] != [str(n) for n in range(len(contents))] or not text.startswith(literals[0]):
        return None
    spans, at = [], len(literals[0])
    for n, (content, literal) in enumerate(zip(contents, literals[1:], strict=True), 1):
        for said in (content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n"), content.lstrip("\n")):
            end = at + len(said)
            if text.startswith(said, at) and text.startswith(literal, end) and (n < len(contents) or end + len(literal) == len(text)):
                spans.append((at, end))
                at = end + len(literal)
                break
        else:
            return None
    return spans


def _turn(text: str, before: list[str], masked: list[str], mark: str, exact: bool) -> Span | None:
    """One turn from the renderings up to it and up to the next, real and with stand-ins; None where they do not fit.

    `exact`: without generation prompts, what the template says before the stand-in has to stand in the text too.
    """
    parts = masked[1].split(mark)
    if not (len(parts) == 2 and text.startswith(before[1]) and before[1].startswith(before[0]) and before[1].endswith(parts[1])):
        return None
    start, end = len(before[0]), len(before[1]) - len(parts[1])
    head = parts[0][len(masked[0]) :] if parts[0].startswith(masked[0]) else None
    if head is not None and text.startswith(head, start):
        start += len(head)
    elif exact:
        return None
    return (start, end) if start <= end else None


def flags(text: str, offsets: list[Span], spans: list[Span]) -> list[bool]:
    """Which tokens lie in the spans; a token belongs to where its first character that is not a space stands.

    Args:
        offsets: `[start, end)` in the text of each token, ascending, as the tokenizer gives them.
        spans: ascending and apart.
    """
    starts = [start for start, _ in offsets]
    supervised = [False] * len(offsets)
    for start, end in spans:
        first, last = _token_at(text, offsets, starts, start), _token_at(text, offsets, starts, end)
        supervised[first:last] = [True] * (last - first)
    return supervised


def _token_at(text: str, offsets: list[Span], starts: list[int], at: int) -> int:
    """Number of the first token that belongs to the text from `at` on."""
    i = bisect_left(starts, at)
    # byte-level tokenizers that trim offsets leave nothing of a token of spaces but where it ends
    while 0 < i < len(offsets) and offsets[i] == (at, at) and offsets[i - 1][1] < at:
        i += 1
    if i:
        start, end = offsets[i - 1]  # a word with the space before it, which may belong to what came before
        if start < at < end and text[start:at].isspace() and not text[at:end].isspace():
            i -= 1
    return i
