"""Data files: which ones a spec names, what cannot be read, and the same table from every format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from trainers.data import files, source
from trainers.data.files import File
from trainers.data.scan import check_schemas
from trainers.errors import UserError

pytestmark = pytest.mark.unit
ROWS = [{"text": f"text {i}, with\na line", "label": "ab"[i % 2]} for i in range(5)]


def write(path: Path, rows: list[dict]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    match path.suffix:
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [row for piece in source.pieces(File.at(path)) for block in source.blocks(piece) for row in block.table.to_pylist()]


@pytest.mark.parametrize("suffix", files.FORMATS)
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    assert read(path) == ROWS
    assert source.beginning(File.at(path)).to_pylist() == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_the_beginning_of_a_large_file_knows_its_columns(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS * 1000)
    head = source.beginning(File.at(path), head_bytes=100)
    assert head.column_names == ["text", "label"] and head.slice(0, 3).to_pylist() == ROWS[:3]
    assert head.num_rows < 5000


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("bytes_", [1, 7, 50, 333, 10_000])
def test_pieces_and_blocks_hold_every_row_once_in_order(tmp_path: Path, suffix: str, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"row {i} " + "é" * (i % 13), "label": "x"} for i in range(100)]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=9)
    else:
        write(path, rows)
    monkeypatch.setattr(source, "PIECE_BYTES", bytes_)
    pieces = source.pieces(File.at(path))
    assert len(pieces) > 1 or bytes_ == 10_000
    for block_bytes in (1, 100, 1 << 20):
        assert [row for piece in pieces for block in source.blocks(piece, block_bytes=block_bytes) for row in block.table.to_pylist()] == rows


def test_a_broken_line_of_a_later_piece_is_named_by_its_number_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n' * 50 + "{\n" + '{"a": 1}\n' * 9)
    for size in range(60, 240):  # cuts in the middle of a line, at its end, and behind it
        monkeypatch.setattr(source, "PIECE_BYTES", size)
        with pytest.raises(UserError, match=r"x.jsonl:101: is not JSON"):
            [list(source.blocks(piece)) for piece in source.pieces(File.at(tmp_path / "x.jsonl"))]


def test_empty_files_are_empty_tables(tmp_path: Path) -> None:
    for suffix in files.FORMATS:
        (tmp_path / f"empty{suffix}").touch()
        assert read(tmp_path / f"empty{suffix}") == [] and source.beginning(File.at(tmp_path / f"empty{suffix}")).num_rows == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', "x.jsonl:2: is not JSON: Expecting value"),
        ("x.jsonl", '{"a": 1}\n[1]\n', "x.jsonl:2: is not an object: [1]"),
        ("x.json", '[{"a": 1},\n {]', "x.json:2: is not JSON: Expecting property name enclosed in double quotes"),
        ("x.json", '{"a": 1}', "x.json: must be a list of objects, [{…}, {…}]"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", "x.csv:3: has 3 columns, not 2: 1,2,3"),
        ("x.parquet", "not parquet", "x.parquet: cannot be read as parquet: "),
        ("x.jsonl", '{"a": 1}\n{"a": "b"}\n', "x.jsonl:2: column 'a' holds str here, int elsewhere"),
    ],
)
def test_what_cannot_be_read_names_the_file_and_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    for reading in (read, lambda path: source.beginning(File.at(path))):
        with pytest.raises(UserError) as caught:
            reading(tmp_path / name)
        assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_bytes_that_are_no_text_become_replacement_characters(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes({"x.jsonl": b'{"a": "caf\xe9"}\n', "x.json": b'[{"a": "caf\xe9"}]', "x.csv": b"a\ncaf\xe9\n"}[name])
    assert read(tmp_path / name) == [{"a": "caf\ufffd"}]


def test_types_that_do_not_go_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", [{"text": "x"}]), write(tmp_path / "b.jsonl", [{"text": ["y"]}])]
    schemas = [(File.at(path), source.beginning(File.at(path)).schema) for path in paths]
    with pytest.raises(UserError, match=r"data.train: .*b.jsonl: the same column has types that do not go together: .* \(before: .*a.jsonl\)"):
        check_schemas(schemas, "train")


def test_files_from_names_folders_globs_and_packages(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / name, ROWS) for name in ("a.csv", "b.jsonl", "c.csv"))
    (tmp_path / "notes.txt").touch()

    def found(spec: str | list[str]) -> list[Path]:
        return [Path(file.address) for file in files.files(spec)]

    assert found(str(a)) == [a]
    assert found(str(tmp_path)) == [a, b, c], "a folder: the data files in it, by name"
    assert found(str(tmp_path / "*.csv")) == [a, c]
    assert found([str(c), str(a)]) == [c, a], "a list keeps its order"
    assert files.locate("package:trainers/data") == str(Path(source.__file__).parent)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}/none.csv", "'{}/none.csv': there is no such file"),
        ("{}/*.csv", "'{}/*.csv': there is no such file"),
        ("{}", "'{}': there is no such file with a .parquet, .jsonl, .json, .csv ending"),
        ("{}/notes.txt", "{}/notes.txt: the ending is not one of .parquet, .jsonl, .json, .csv"),
        ("ftp://host/x.csv", "'ftp://host/x.csv': takes s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, or a path"),
        ("s3:///x.csv", "'s3:///x.csv': takes s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, or a path"),
        ("package:no-such-thing/x.csv", "'package:no-such-thing/x.csv': no package 'no-such-thing' is installed; pip install it, or give a path"),
        ("package:", "'package:': no package '' is installed; pip install it, or give a path"),
        ("package:trainers/none.csv", "'package:trainers/none.csv': there is no such file"),
        ("n" * 300, f"{'n' * 300!r:.80}: there is no such file"),
    ],
)
def test_specs_that_name_nothing(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError) as caught:
        files.files(spec.replace("{}", str(tmp_path)))
    assert str(caught.value) == message.replace("{}", str(tmp_path))
