"""Writes dialogues out of the installed package `chitchat-dataset` (MIT licence) as chat messages.

    python examples/dialogues.py build/dialogues.jsonl [ROWS]

Two people talk; the one who speaks second becomes the assistant. Each line: {"messages": [{"role", "content"}, …]}.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path


def rows(most: int):
    """Yields up to `most` dialogues of two speakers and at least two turns."""
    found = 0
    for dialogue in json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8")).values():
        messages: list[dict[str, str]] = []
        speakers = list(dict.fromkeys(said["sender"] for turn in dialogue["messages"] for said in turn))
        if len(speakers) != 2:
            continue
        for turn in dialogue["messages"]:
            role = "user" if turn[0]["sender"] == speakers[0] else "assistant"
            text = "\n".join(said["text"].strip() for said in turn)
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n" + text
            else:
                messages.append({"role": role, "content": text})
        if len(messages) >= 2 and all(message["content"].strip() for message in messages):
            yield {"messages": messages}
            found += 1
            if found == most:
                return


if __name__ == "__main__":
    target, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in rows(most)]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} dialogues written to {target}")
