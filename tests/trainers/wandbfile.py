"""Reads a W&B offline file back: a log of LevelDB's format (32 KiB blocks, 7-byte record headers) holding protobufs.

wandb 0.31 has no public reader. The layout: https://github.com/google/leveldb/blob/main/doc/log_format.md, behind a
7-byte header of W&B's own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
BLOCK, HEADER = 32768, 7


def read(path: Path) -> dict[str, Any]:
    """`{"id", "project", "config": {…}, "history": [{…}, …], "summary": {…}}` of an offline run's file."""
    from wandb.proto import wandb_internal_pb2 as proto

    result: dict[str, Any] = {"config": {}, "history": [], "summary": {}}
    for data in _records(path.read_bytes()):
        record = proto.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result |= {"id": record.run.run_id, "project": record.run.project}
            result["config"] |= {_name(item): json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            result["config"] |= {_name(item): json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            result["history"].append({_name(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            result["summary"] |= {_name(item): json.loads(item.value_json) for item in record.summary.update}
    return result


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", data[:7]
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        at += HEADER
        if not kind and not length:
            return
        piece = data[at : at + length]
        at += length
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield parts
