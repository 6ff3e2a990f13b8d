"""Rows of every shape to payloads, and which tokens of a payload carry loss."""

from __future__ import annotations

import json
from functools import cache
from itertools import groupby, product
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.chat import Template, examples
from trainers.data.rows import Example
from trainers.errors import UserError
from trainers.tasks.causal_lm import Data

pytestmark = pytest.mark.unit

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|return|>", "<|user|>", "<|bot|>"]
# as SmolLM2-Instruct ships it
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TRIMS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# as Qwen3: thoughts stay in the last turn only
DROPS_THOUGHTS = (
    "{% for m in messages %}{% set ns = namespace(c=m.content) %}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}{% set ns.c = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}{% set ns.c = '<think>\n\n</think>\n\n' + m.content %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + ns.c + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# as DeepSeek-R1: no thoughts in any turn, but the generation prompt opens one
OPENS_THOUGHT = (
    "{% for m in messages %}{{ '<|user|>' + m.content if m.role == 'user' else '<|bot|>' + m.content.split('</think>')[-1] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|bot|><think>\n' }}{% endif %}"
)
ESCAPES = CHATML.replace("message['content']", "message['content'] | replace('<', '&lt;')")
NEVER_CLOSES = "{% for m in messages %}{{ ('<|user|>' if m.role == 'user' else '<|bot|>') + m.content }}{% endfor %}"
# as gpt-oss: the last turn is closed by another token
CLOSES_TWO_WAYS = "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content + ('<|return|>' if loop.last else '<|im_end|>') }}{% endfor %}"
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
MARKED_CONTENT_ONLY = MARKED.replace("{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}")
MARKED_WITH_NEWLINE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
LOSES_CONTENT = "{% for m in messages %}{{ '<|im_start|>' + m.role + (m.content | length | string) + '<|im_end|>' }}{% endfor %}"


@cache
def _backend(kind: str) -> Any:
    """`words`: byte-level BPE with merges, white space included; `bytes`: a token a byte; `-trim`: offsets without spaces; `metaspace`: as Llama 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    corpus = ["user assistant hello world hello  there\n\nanswer answer yes yes no no\n\n\n system [INST] [/INST] 1 2 3"] * 20
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "metaspace"))
    if kind == "metaspace":
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False)
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind.endswith("-trim"))
        size = 400 if kind.startswith("words") else 256 + len(SPECIAL)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _tokenizer(template: str | None = None, kind: str = "words", eos: str = "<|im_end|>") -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_backend(kind), bos_token="<s>", eos_token=eos, additional_special_tokens=SPECIAL)
    tokenizer.chat_template = template
    return tokenizer


KINDS = ["words", "words-trim", "bytes", "bytes-trim"]


def _dialogue(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def _learnt(tokenizer: Any, payload: dict[str, Any], template: Template | None = None) -> list[str]:
    """The text of each run of tokens that carry loss."""
    ids, supervised = (template or Template(tokenizer, "assistant")).encode(payload)
    assert len(ids) == len(supervised) and all(isinstance(flag, bool) for flag in supervised)
    if "messages" in payload:
        rendered = tokenizer.apply_chat_template(payload["messages"], tokenize=False)
        assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    runs = groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False) for flag, run in runs if flag]


# ---- shapes of rows

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
SAID = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
DIALOGUE = {"messages": TURNS}


@pytest.mark.parametrize(
    ("row", "keys", "shape", "payload"),
    [
        ({"messages": TURNS}, {}, "messages", DIALOGUE),
        ({"chat": TURNS, "text": "x"}, {"messages": "chat"}, "messages", DIALOGUE),
        ({"messages": [{"role": "system", "content": ""}, *TURNS]}, {}, "messages", {"messages": [{"role": "system", "content": ""}, *TURNS]}),
        ({"conversations": TURNS}, {}, "messages", DIALOGUE),
        ({"conversations": SAID}, {}, "sharegpt", DIALOGUE),
        ({"messages": SAID}, {}, "sharegpt", DIALOGUE),
        ({"dialog": SAID}, {"messages": "dialog"}, "sharegpt", DIALOGUE),
        ({"conversations": [{"from": "system", "value": "s"}, *SAID]}, {}, "sharegpt", {"messages": [{"role": "system", "content": "s"}, *TURNS]}),
        ({"prompt": "hi", "completion": "yes"}, {}, "prompt-completion", {"prompt": "hi", "completion": "yes"}),
        ({"q": "hi", "a": "yes", "text": "x"}, {"prompt": "q", "completion": "a"}, "prompt-completion", {"prompt": "hi", "completion": "yes"}),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, {}, "prompt-completion", DIALOGUE),
        ({"prompt": "hi", "completion": TURNS[1:]}, {}, "prompt-completion", DIALOGUE),
        ({"prompt": TURNS[:1], "completion": "yes"}, {}, "prompt-completion", DIALOGUE),
        ({"prompt": TURNS + TURNS[:1], "completion": "yes"}, {}, "prompt-completion", {"messages": TURNS * 2, "context": 3}),
        ({"instruction": "hi", "input": "", "output": "yes"}, {}, "alpaca", DIALOGUE),
        ({"instruction": "hi", "output": "yes"}, {}, "alpaca", DIALOGUE),
        ({"instruction": "hi", "input": "x", "output": "yes", "text": "all"}, {}, "alpaca", {"messages": [{"role": "user", "content": "hi\n\nx"}, TURNS[1]]}),
        ({"text": "hello"}, {}, "text", {"text": "hello"}),
        ({"body": "hello", "messages": TURNS}, {"text": "body"}, "text", {"text": "hello"}),
    ],
)
def test_shapes(row: dict[str, Any], keys: dict[str, str], shape: str, payload: dict[str, Any]) -> None:
    table = pa.Table.from_pylist([row])
    for format in ("auto", shape):
        (example,) = examples(table, Data(train="x", format=format, **keys))
        assert example.payload == payload
        assert example.label is None
        assert json.loads(example.content) == payload


def test_content_tells_rows_apart_by_what_they_say() -> None:
    table = pa.Table.from_pylist([{"messages": TURNS, "id": 1}, {"messages": TURNS, "id": 2}, {"messages": TURNS * 2, "id": 3}])
    first, second, third = examples(table, Data(train="x"))
    assert first.content == second.content != third.content


@pytest.mark.parametrize("speaker", ["gpt", "assistant", "chatgpt", "bing", "bard"])
def test_sharegpt_speakers(speaker: str) -> None:
    rows = [{"conversations": [{"from": "user", "value": "hi"}, {"from": speaker, "value": "yes"}, {"from": "tool", "value": "x"}]}]
    (example,) = examples(pa.Table.from_pylist(rows), Data(train="x"))
    assert example.payload == {"messages": [*TURNS, {"role": "tool", "content": "x"}]}


TEXTS = pa.schema([("prompt", pa.string()), ("completion", pa.string())])


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": TURNS}, {"messages": None}, {"messages": []}, {"messages": TURNS[:1]}, {"messages": [TURNS[0], {"role": "assistant", "content": " "}]}],
        [{"conversations": SAID}, {"conversations": None}, {"conversations": SAID[:1]}],
        [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}, {"prompt": "a", "completion": " \n"}, {"prompt": "", "completion": "b"}],
        [{"prompt": TURNS[:1], "completion": TURNS[1:]}, {"prompt": TURNS, "completion": TURNS[:1]}, {"prompt": [], "completion": TURNS}],
        [{"instruction": "a", "output": "b"}, {"instruction": None, "output": "b"}, {"instruction": "a", "output": " "}],
        [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "\t\n"}],
    ],
)
def test_rows_that_say_nothing_are_blank(rows: list[dict[str, Any]]) -> None:
    first, *rest = examples(pa.Table.from_pylist(rows), Data(train="x"))
    assert first.payload is not None
    assert rest == [Example.blank()] * len(rest)


def test_a_column_of_nulls_or_no_rows() -> None:
    assert examples(pa.table({"messages": pa.nulls(2)}), Data(train="x")) == [Example.blank()] * 2
    assert examples(pa.table({"messages": [[], []]}), Data(train="x")) == [Example.blank()] * 2
    assert examples(pa.table({"text": pa.array([], pa.string())}), Data(train="x")) == []
    assert [e.payload for e in examples(pa.table({"text": pa.array(["a"], pa.large_string())}), Data(train="x"))] == [{"text": "a"}]


@pytest.mark.parametrize(
    ("table", "keys", "key", "words"),
    [
        ({"body": ["x"], "n": [1]}, {}, "data.format", ["body (string)", "n (int64)", "messages", "sharegpt", "prompt-completion", "alpaca", "text"]),
        ({}, {}, "data.format", ["none"]),
        ({"prompt": ["x"]}, {}, "data.format", ["prompt (string)"]),
        ({"messages": [[{"speaker": "a"}]]}, {}, "data.format", ["messages (list<"]),
        ({"chats": [TURNS]}, {"messages": "chat"}, "data.messages", ["'chat'", "did you mean chats"]),
        ({"text": ["x"]}, {"format": "messages"}, "data.messages", ["'messages'"]),
        ({"text": ["x"]}, {"format": "sharegpt"}, "data.messages", ["'conversations'"]),
        ({"prompt": ["x"]}, {"format": "prompt-completion"}, "data.completion", ["'completion'"]),
        ({"q": ["x"], "text": ["y"]}, {"prompt": "q", "completion": "a"}, "data.completion", ["'a'"]),
        ({"instruction": ["x"]}, {"format": "alpaca"}, "data.format", ["'output'"]),
        ({"txt": ["x"]}, {"format": "text"}, "data.text", ["did you mean txt"]),
        ({"messages": ["[]"]}, {"format": "messages"}, "data.messages", ["string", "list of turns"]),
        ({"text": [1]}, {}, "data.text", ["int64", "text"]),
        ({"prompt": [1], "completion": ["x"]}, {}, "data.prompt", ["int64", "text or a list"]),
        ({"messages": [TURNS, [{"role": "user", "content": None}]]}, {}, "data.messages", ["row 2, turn 1", "content is missing"]),
        ({"messages": [TURNS, [*TURNS, {"content": "x"}]]}, {}, "data.messages", ["row 2, turn 3", "role is missing"]),
        ({"messages": [TURNS, [None]]}, {}, "data.messages", ["row 2, turn 1", "None"]),
        ({"messages": [["hi", "yes"]]}, {"format": "messages"}, "data.messages", ["row 1, turn 1", "'hi'"]),
        ({"messages": [[{"role": "user", "content": 3}]]}, {}, "data.messages", ["row 1, turn 1", "content is int, not text"]),
        ({"messages": [[{"role": 1, "content": "x"}]]}, {}, "data.messages", ["role is int, not text"]),
        ({"messages": [[{"role": "user", "content": [{"type": "text", "text": "x"}]}]]}, {}, "data.messages", ["content is list, not text"]),
        ({"messages": [[{"role": "gpt", "content": "x"}]]}, {}, "data.messages", ["'gpt'", "write assistant"]),
        ({"messages": [[{"role": "asistant", "content": "x"}]]}, {}, "data.messages", ["'asistant'", "write assistant"]),
        ({"messages": [[{"role": "assistant", "content": "", "tool_calls": ["f()"]}]]}, {}, "data.messages", ["tool_calls"]),
        ({"conversations": [SAID, [{"from": "function_call", "value": "x"}]]}, {}, "data.messages", ["row 2, turn 1", "'function_call'", "human"]),
        ({"conversations": [[{"from": "gpt", "value": None}]]}, {}, "data.messages", ["value is missing"]),
        ({"prompt": [[{"role": "user", "content": None}]], "completion": ["x"]}, {}, "data.prompt", ["row 1, turn 1"]),
        ({"prompt": ["x"], "completion": [[{"role": "assistant", "content": None}]]}, {}, "data.completion", ["row 1, turn 1"]),
    ],
)
def test_rows_that_cannot_be_read(table: dict[str, list], keys: dict[str, str], key: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        examples(pa.table(table), Data(train="x", **keys))
    assert caught.value.key == key
    for word in words:
        assert word in caught.value.message


# ---- which tokens carry loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("template", "contents", "learnt"),
    [
        (CHATML, ["hello", "yes", "there", "no no"], ["yes<|im_end|>", "no no<|im_end|>"]),
        (CHATML, ["yes", "yes", "yes", "yes"], ["yes<|im_end|>"] * 2),
        (CHATML, ["assistant", "user", "<|im_end|>", "system"], ["user<|im_end|>", "system<|im_end|>"]),
        (CHATML, ["hello", "", "there", "yes"], ["<|im_end|>", "yes<|im_end|>"]),
        (CHATML, ["ä😀", "é 👩‍👩‍👧 日本", "hello"], ["é 👩‍👩‍👧 日本<|im_end|>"]),
        (CHATML, ["hello ", " yes  ", " yes  "], [" yes  <|im_end|>"]),
        (CHATML, ["MusterTurn0Q", "MusterTurn1Q MusterTurnZ0Q", "x", "MusterTurn0Q"], ["MusterTurn1Q MusterTurnZ0Q<|im_end|>", "MusterTurn0Q<|im_end|>"]),
        (CHATML, ["{{ 1 }}", "{% raw %}{{ x }}"], ["{% raw %}{{ x }}<|im_end|>"]),
        (TRIMS, [" yes ", "  yes\n", "yes", "no", "hello"], ["yes<|im_end|>", "no<|im_end|>"]),
        (TRIMS, ["hello", " \n"], ["<|im_end|>"]),
        (DROPS_THOUGHTS, ["a", "<think>no</think>\n\nyes", "b", "<think>1 2</think>\n\n3"], ["yes<|im_end|>", "<think>1 2</think>\n\n3<|im_end|>"]),
        (DROPS_THOUGHTS, ["yes", "<think>yes</think>yes", "yes", "yes"], ["yes<|im_end|>", "yes<|im_end|>"]),
        (DROPS_THOUGHTS, ["hello", "<think>1</think>yes", "there"], ["yes<|im_end|>"]),
        (DROPS_THOUGHTS, ["hello", "yes", "there", "no"], ["yes<|im_end|>", "no<|im_end|>"]),
        (OPENS_THOUGHT, ["a", "<think>no</think>yes", "yes", "no"], ["yes</s>", "no</s>"]),
        (ESCAPES, ["<", "< yes\n", "<|im_end|>", "no"], ["&lt; yes\n<|im_end|>", "no<|im_end|>"]),
        (ESCAPES, ["&lt;", "<", "&lt;", "<"], ["&lt;<|im_end|>"] * 2),
        (NEVER_CLOSES, ["hello", "yes", "yes", "no"], ["yes", "no"]),
        (CLOSES_TWO_WAYS, ["hello", "yes", "there", "no"], ["yes<|im_end|>", "no<|return|>"]),
        (CLOSES_TWO_WAYS, ["hello", "yes", "there"], ["yes<|im_end|>"]),
        (MARKED, ["yes", "yes", "yes", "no  "], ["yes<|im_end|>", "no  <|im_end|>"]),
        (MARKED, ["hello", ""], ["<|im_end|>"]),
        (MARKED_CONTENT_ONLY, ["yes", "yes", "", "no"], ["yes<|im_end|>", "no<|im_end|>"]),
        (MARKED_WITH_NEWLINE, ["yes", "yes", "", "no"], ["yes<|im_end|>\n", "no<|im_end|>\n"]),
    ],
)
def test_assistant_turns_carry_loss(kind: str, template: str, contents: list[str], learnt: list[str]) -> None:
    assert _learnt(_tokenizer(template, kind), {"messages": _dialogue(*contents)}) == learnt


@pytest.mark.parametrize("kind", KINDS)
def test_llama2_closes_after_a_space(kind: str) -> None:
    tokenizer = _tokenizer(LLAMA2, kind, eos="</s>")
    learnt = _learnt(tokenizer, {"messages": _dialogue("hello", " answer ", "answer", "yes")})
    # a word that takes the space before it into its token starts with that space
    assert [text.removeprefix(" ") for text in learnt] == ["answer </s>", "yes </s>"]
    assert all(text.startswith(" ") for text in learnt) == kind.startswith("words")


def test_sentencepiece_like_offsets() -> None:
    tokenizer = _tokenizer(LLAMA2, "metaspace", eos="</s>")
    ids, supervised = Template(tokenizer, "assistant").encode({"messages": _dialogue("hello", "answer é😀", "answer", "yes")})
    tokens = tokenizer.convert_ids_to_tokens([token for token, flag in zip(ids, supervised, strict=True) if flag])
    said = b"".join(bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.encode() for token in tokens).decode()
    assert said == "▁answer▁é😀▁</s>▁yes▁</s>"


def test_what_closes_a_turn_is_learnt_from_the_template() -> None:
    """A token between two turns closes the first where the last turn is closed as well; where it opens the second, it does not."""
    payload = {"messages": _dialogue("hello", "yes", "there", "no")}
    assert _learnt(_tokenizer(CLOSES_TWO_WAYS, eos="</s>"), payload) == ["yes<|im_end|>", "no<|return|>"]
    assert _learnt(_tokenizer(NEVER_CLOSES + "{{ '<|return|>' }}", eos="</s>"), payload) == ["yes", "no<|return|>"]


def test_system_turns_and_other_roles_carry_none() -> None:
    messages = [*_dialogue("hello", "yes", system="yes"), {"role": "tool", "content": "yes"}, {"role": "assistant", "content": "no"}]
    assert _learnt(_tokenizer(CHATML), {"messages": messages}) == ["yes<|im_end|>", "no<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, TRIMS, MARKED])
def test_the_assistant_may_speak_first_and_twice(template: str) -> None:
    messages = [{"role": role, "content": "yes"} for role in ("assistant", "assistant", "user", "assistant")]
    assert _learnt(_tokenizer(template), {"messages": messages}) == ["yes<|im_end|>"] * 3


def test_the_assistant_may_speak_first_where_turns_are_rewritten() -> None:
    messages = [{"role": role, "content": "<think>1</think>yes"} for role in ("assistant", "user", "assistant")]
    assert _learnt(_tokenizer(DROPS_THOUGHTS), {"messages": messages}) == ["yes<|im_end|>", "<think>1</think>yes<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARKED, DROPS_THOUGHTS])
def test_assistant_turns_of_the_prompt_carry_none(template: str) -> None:
    payload = {"messages": _dialogue("hello", "yes", "there", "no"), "context": 3}
    assert _learnt(_tokenizer(template), payload) == ["no<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, MARKED, LOSES_CONTENT])
def test_loss_on_all(template: str) -> None:
    tokenizer = _tokenizer(template)
    payload = {"messages": _dialogue("hello", "yes")}
    assert _learnt(tokenizer, payload, Template(tokenizer, "all")) == [tokenizer.apply_chat_template(payload["messages"], tokenize=False)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("payload", "everything", "learnt"),
    [
        ({"text": "hello\nthere "}, False, ["hello\nthere <|im_end|>"]),
        ({"text": "hello<|im_end|>"}, False, ["hello<|im_end|>"]),
        ({"prompt": "hello", "completion": " answer"}, False, [" answer<|im_end|>"]),
        ({"prompt": "answer\n", "completion": "answer"}, False, ["answer<|im_end|>"]),
        ({"prompt": "hello é", "completion": "😀"}, False, ["😀<|im_end|>"]),
        ({"prompt": "hello", "completion": " answer"}, True, ["hello answer<|im_end|>"]),
    ],
)
def test_plain_texts(kind: str, payload: dict[str, str], everything: bool, learnt: list[str]) -> None:
    tokenizer = _tokenizer(None, kind)
    assert _learnt(tokenizer, payload, Template(tokenizer, "all" if everything else "assistant")) == learnt


def test_plain_texts_get_the_tokenizers_own_special_tokens_once() -> None:
    from tokenizers import Tokenizer, processors

    tokenizer = _tokenizer(None, eos="</s>")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    opening, closing = (("<s>", tokenizer.convert_tokens_to_ids("<s>")), ("</s>", tokenizer.convert_tokens_to_ids("</s>")))
    for single in ("<s> $A", "<s> $A </s>", "$A </s>", "$A"):
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[opening, closing])
        from transformers import PreTrainedTokenizerFast

        template = Template(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"), "assistant")
        bos = ["<s>"] if "<s>" in single else []
        for payload, words, flags in (
            ({"text": "yes"}, ["yes"], [True] * (len(bos) + 2)),
            ({"text": "<s>yes</s>"}, ["yes"], [True] * (len(bos) + 2)),
            ({"prompt": "yes", "completion": " no"}, ["yes", "Ġno"], [False] * len(bos) + [False, True, True]),
        ):
            ids, supervised = template.encode(payload)
            tokens = tokenizer.convert_ids_to_tokens(ids)
            if payload != {"text": "<s>yes</s>"} or bos:
                assert (tokens, supervised) == ([*bos, *words, "</s>"], flags)


@pytest.mark.parametrize(
    ("template", "roles", "words"),
    [
        (None, ["user", "assistant"], ["no chat template", "prompt-completion"]),
        (LLAMA2, ["user", "user", "assistant"], ["roles must alternate", "user, user, assistant"]),
        (LLAMA2.replace("[INST]", "{% generation %}{% endgeneration %}"), ["user", "user"], ["roles must alternate", "user, user"]),
        (LOSES_CONTENT, ["user", "assistant"], ["generation", "data.loss_on: all"]),
    ],
)
def test_templates_that_cannot_do_it(template: str | None, roles: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Template(_tokenizer(template), "assistant").encode({"messages": [{"role": role, "content": "hello"} for role in roles]})
    assert caught.value.key == "model"
    for word in words:
        assert word in caught.value.message


FRAGMENTS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "</s>",
    "MusterTurn0Q",
    "Muster1Probe",
    "\n",
    "\n\n",
    " ",
    "  ",
    "{{",
    "é",
    "👩‍👧",
    "yes",
]
CONTENT = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=5).map("".join)


@cache
def _pair(template: str, kind: str) -> tuple[Any, Template]:
    tokenizer = _tokenizer(template, kind)
    return tokenizer, Template(tokenizer, "assistant")


@settings(deadline=None, max_examples=100)
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), system=st.none() | CONTENT)
@pytest.mark.parametrize(("kind", "template"), product(KINDS, [CHATML, MARKED]))
def test_what_carries_loss_is_what_the_assistant_said(kind: str, template: str, contents: list[str], system: str | None) -> None:
    """Special tokens that a content spells out are special tokens (no tokenizer tells them apart), and belong to who said them.

    With a token a byte the text is exact. With merges, white space at a content's start may share a token with the newline
    before it, and a token that starts outside does not count.
    """
    tokenizer, encoder = _pair(template, kind)
    learnt = _learnt(tokenizer, {"messages": _dialogue(*contents, system=system)}, encoder)
    said = [content + "<|im_end|>" for content in contents[1::2]]
    if kind.startswith("bytes"):
        assert learnt == said
    else:
        assert len(learnt) == len(said)
        for got, wanted in zip(learnt, said, strict=True):
            assert wanted.endswith(got) and not wanted.removesuffix(got).strip()


@settings(deadline=None, max_examples=100)
@given(turns=st.lists(st.tuples(CONTENT, st.sampled_from(["", "<think>", "<think>yes</think>", "<think>\n</think>\n\n"]), CONTENT), min_size=1, max_size=4))
def test_what_is_left_of_rewritten_turns_carries_loss(turns: list[tuple[str, str, str]]) -> None:
    tokenizer, encoder = _pair(DROPS_THOUGHTS, "bytes-trim")
    contents = [text for asked, thought, answer in turns for text in (asked, thought + answer)]
    said = [text.split("</think>")[-1].lstrip("\n") if "</think>" in text else text for text in contents[1:-1:2]] + [contents[-1]]
    assert _learnt(tokenizer, {"messages": _dialogue(*contents)}, encoder) == [text + "<|im_end|>" for text in said]
