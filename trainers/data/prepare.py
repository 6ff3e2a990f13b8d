"""From the user's rows to token rows, once: scan, decide, tokenise, assemble.

The prepared set lies in `<storage>/prepared/<hash of source and settings>`, so an unchanged source costs nothing the
second time and a changed one prepares anew. Its manifest is written last: a killed preparation leaves nothing that looks
finished. Each step works on one part of the source, or of the set, at a time and leaves its results in a work store beside
the set; they follow from source and settings alone, so that a preparation that was killed goes on where it was, and two at
once write the same bytes. Memory: a part's (`trainers.data.source.PIECE_BYTES`) or a partition's in a worker; here, the
facts of all rows (`trainers.data.facts`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import xxhash
from numpy.typing import NDArray

from trainers import tasks
from trainers.data import shards, source
from trainers.data.assemble import Assemble, Assembled, Partition
from trainers.data.encode import VERDICTS, Encode, Encoded, Rows, tokenizer
from trainers.data.facts import Facts
from trainers.data.files import File, files
from trainers.data.limits import check_labels, check_rows
from trainers.data.prepared import DROPPED, MANIFEST, Prepared, is_there
from trainers.data.scan import Part, Scan, Scanned, check_schemas
from trainers.data.split import REASONS, SPLITS, Verdicts, decide
from trainers.data.spread import spread
from trainers.data.store import MEMORY, StorageError, Store
from trainers.errors import UserError
from trainers.job import Job
from trainers.model_source import ModelSource

VERSION = 4
"""Raised when the same source and settings would give other rows."""
SMALL_BYTES = 64 << 20
"""A source up to this size is prepared in this process, its work in memory: Ray would take longer to start on it."""
PARTITION_BYTES = 256 << 20
"""Bytes of content that are mixed and packed at once; as tokens they take about as many."""

Say = Callable[[str], None]


def prepare(job: Job, model: ModelSource, storage: Path, say: Say, gather: Callable[[], Any] | None = None) -> Prepared:
    """The job's prepared set, made now if need be.

    Args:
        say: hears what is being done.
        gather: makes sure that Ray is running; called for a source that is not small. Without it everything is done here.

    Raises:
        UserError: missing files or columns, no rows, a label that training has never seen, texts longer than the model.
    """
    paths = {name: files(specs) for name in SPLITS if (specs := getattr(job.data, name)) is not None}
    target = f"{job.data.prepared or storage / 'prepared'}/{_address(job, model, paths)}"
    try:
        if not is_there(target):
            _prepare(job, model, paths, Store(target), say, gather)
        return Prepared(target)
    except StorageError as error:
        if is_there(target):  # somebody else has finished it, and cleared the work away
            return Prepared(target)
        raise UserError(str(error), key="data.prepared") from None


def _prepare(job: Job, model: ModelSource, paths: dict[str, list[File]], target: Store, say: Say, gather: Callable[[], Any] | None) -> None:
    if sum(file.size for listed in paths.values() for file in listed) <= SMALL_BYTES:
        _Preparation(job, model, paths, Store(MEMORY), target, False, say).run()
        return
    if gather is not None:
        gather()
    libraries = [(name, version(name)) for name in ("numpy", "pyarrow", "tokenizers", "transformers")]
    work = Store(f"{target.url}/work-{_digest(libraries)}")  # what another version made is not gone on with
    try:
        _Preparation(job, model, paths, work, target, gather is not None, say).run()
    except UserError:
        work.clear()  # other settings, another set
        raise
    work.clear()


class _Preparation:
    """One preparation, from the files to the manifest."""

    def __init__(self, job: Job, model: ModelSource, paths: dict[str, list[File]], work: Store, target: Store, on_ray: bool, say: Say) -> None:
        self.job, self.model, self.paths, self.work, self.target = job, model, paths, work, target
        self.on_ray, self.say = on_ray, say
        self.shares = {name: 0.0 if name in paths else getattr(job.data.split, name) for name in ("validation", "test")}

    def run(self) -> None:
        """Everything, step by step."""
        self.say("reading data")
        scan, parts = self._parts()
        self._spread(scan, parts, "reading data")
        facts, rows, origin = self._facts(parts)
        verdicts = decide(facts, origin, self.job.data.clean, **self.shares)
        labels = check_labels(facts, origin, verdicts, self.shares)
        max_length = self._max_length()

        self.say("tokenising")
        sizes = [int(facts.size[verdicts == split].sum(dtype=np.int64)) for split in range(len(SPLITS))]
        del facts
        self.work.put(VERDICTS, verdicts.tobytes())
        partitions = tuple(max(1, -(-size // PARTITION_BYTES)) for size in sizes)
        encoded = self._spread(Encode(scan, self.model, labels, max_length, partitions), rows, "tokenising")
        for split, name in enumerate(SPLITS):
            if (kept := int((verdicts == split).sum())) and not sum(part.rows[split] for part in encoded):
                raise UserError(f"none of the {kept} {name} rows has anything to learn within {max_length} tokens", key="data.max_length")

        self.say("writing the prepared rows")
        capacity = max_length if tasks.get(self.job.task).packs(self.job.data) else None
        sections = {(s, n): [where for part in encoded for where in part.sections.get((s, n), [])] for s, many in enumerate(partitions) for n in range(many)}
        found = [Partition(*key, own) for key, own in sections.items() if own]
        assembled = self._spread(Assemble(self.work, self.target, capacity, len(labels)), found, "writing the prepared rows")
        self._finish(encoded, assembled, verdicts, labels, max_length)

    def _spread(self, act: Callable[[Any], Any], items: Sequence[Any], doing: str) -> list[Any]:
        return spread(act, items, self.on_ray, self.say, doing)

    def _parts(self) -> tuple[Scan, list[Part]]:
        found = [(SPLITS.index(name), piece) for name in SPLITS for file in self.paths.get(name, []) for piece in source.pieces(file)]
        columns = {}
        for name, listed in self.paths.items():
            beginnings = [source.beginning(file, self.job.data.on_bad_row).column_names for file in listed]
            columns[SPLITS.index(name)] = list(dict.fromkeys(itertools.chain(*beginnings)))
        scan = Scan(self.job, columns, self.work)
        return scan, [Part(number, split, piece) for number, (split, piece) in enumerate(found)]

    def _facts(self, parts: list[Part]) -> tuple[Facts, list[Rows], NDArray[np.uint8]]:
        """The facts of all rows, where each part's rows are, and each row's split (as its file was given)."""
        scanned = [Scanned.read(self.work, part.number) for part in parts]
        for name, listed in self.paths.items():
            own = [(part, s) for part, s in zip(parts, scanned, strict=True) if SPLITS[part.split] == name]
            if not any(len(s.facts) for _, s in own):
                raise UserError(f"{listed[0]}{f' and {len(listed) - 1} more' if listed[1:] else ''}: there are no rows", key=f"data.{name}")
            check_schemas([(part.piece.file, s.schema) for part, s in own], name)
        rows, before, first = [], Counter[tuple[int, str]](), 0
        for part, s in zip(parts, scanned, strict=True):
            file = (part.split, part.piece.file.address)
            rows.append(Rows(part, first, before[file] + 1, len(s.facts)))
            before[file] += len(s.facts)
            first += len(s.facts)
        problem = next((s.problem for s in scanned if s.problem), "")
        facts = Facts.join([s.facts for s in scanned])
        origin = np.repeat(np.array([part.split for part in parts], np.uint8), [own.many for own in rows])
        check_rows(self.job, facts, origin, problem)
        return facts, rows, origin

    def _max_length(self) -> int:
        """Tokens that a row may have."""
        from trainers.model import load_config, longest

        wanted, bound = self.job.data.max_length, longest(load_config(self.model))
        if not isinstance(wanted, int):
            return min(512, bound or 512)
        if bound and wanted > bound:
            raise UserError(f"{wanted} tokens are more than the model can position; at most {bound}", key="data.max_length")
        return wanted

    def _finish(self, encoded: list[Encoded], assembled: list[Assembled], verdicts: Verdicts, labels: list[str], max_length: int) -> None:
        """Writes what was dropped, the index, and the manifest."""
        with tempfile.TemporaryFile(prefix="muster-") as lines:
            for section in (section for part in encoded for section in part.dropped):
                lines.write(self.work.get(*section))
            lines.seek(0)
            self.target.put(DROPPED, lines)
        index = pa.BufferOutputStream()
        parquet.write_table(pa.concat_tables([shards.SCHEMA.empty_table(), *(a.index for a in assembled)]), index, compression="zstd")
        self.target.put(shards.INDEX, index.getvalue().to_pybytes())
        counts = sum((Counter(part.counts) for part in encoded), Counter[str]())
        reasons = Counter({reason: int((verdicts == len(SPLITS) + i).sum()) for i, reason in enumerate(REASONS)})
        reasons["nothing to learn"] = counts["nothing to learn"]
        lengths = {name: _added([a.lengths for a in assembled if SPLITS[a.split] == name]) for name in SPLITS}
        none = np.zeros(len(labels), np.int64)
        label_counts = {name: _added([none, *(a.labels for a in assembled if SPLITS[a.split] == name)]) for name in SPLITS if labels}
        manifest = {
            "version": VERSION,
            "task": self.job.task,
            "labels": labels,
            "max_length": max_length,
            "pad_token_id": tokenizer(self.model).pad_token_id or 0,
            "rows": {name: int(found.sum()) for name, found in lengths.items()},
            "examples": {name: int((verdicts == split).sum()) for split, name in enumerate(SPLITS)},
            "tokens": {name: int((found * np.arange(len(found))).sum()) for name, found in lengths.items()},
            "longest": {name: max(0, len(found) - 1) for name, found in lengths.items()},
            "lengths": {name: _quantiles(found) for name, found in lengths.items()},
            "label_counts": {name: found.tolist() for name, found in label_counts.items()},
            "dropped": {reason: count for reason, count in reasons.most_common() if count},
            "cut": counts["cut"],
            "hash": xxhash.xxh3_128_hexdigest(" ".join(f"{a.split} {a.digest}" for a in assembled).encode()),
        }
        self.target.put(MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def _address(job: Job, model: ModelSource, paths: dict[str, list[File]]) -> str:
    """A hash of everything that decides the rows: files (size and time), data settings, task, tokenizer."""
    facts = {
        "version": VERSION,
        "task": job.task,
        "data": job.data.model_dump(mode="json", exclude={"shuffle_window", "prepared", "cache"}),
        "files": [(name, f.address, f.size, f.stamp) for name, found in paths.items() for f in found],
        "model": (model.path, model.gguf_file, model.signature()),
    }
    return _digest(facts)


def _digest(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _added(counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The sum of arrays, shorter ones as if zeros followed."""
    total = np.zeros(max(map(len, counts), default=0), np.int64)
    for own in counts:
        total[: len(own)] += own
    return total


def _quantiles(rows: NDArray[np.int64]) -> dict[str, int]:
    """Token counts that 5%, 50% and 95% of the rows do not exceed; `rows[n]` of them have n tokens."""
    upto = np.cumsum(rows)
    return {f"p{q}": int(np.searchsorted(upto, 1 + np.ceil((upto[-1] - 1) * q / 100))) for q in (5, 50, 95)} if len(rows) else {}
