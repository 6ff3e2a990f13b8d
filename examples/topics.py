"""Writes the demo's data: questions out of the installed package `chatterbot-corpus`, labelled with their topic.

    python examples/topics.py build/topics.jsonl

The package (BSD licence) holds conversations in YAML, a file a topic; the first turn of each becomes a row
{"text": "What is AI?", "topic": "ai"}. Topics of fewer than 15 conversations are left out.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import yaml

LEAST = 15


def rows():
    """Yields {"text", "topic"} for every conversation."""
    folder = files("chatterbot_corpus") / "data" / "english"
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        conversations = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
        if len(conversations) >= LEAST:
            for turns in conversations:
                yield {"text": str(turns[0]), "topic": path.name.removesuffix(".yml")}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in rows()]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} questions written to {target}")
