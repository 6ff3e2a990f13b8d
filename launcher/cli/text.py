"""Numbers, times and tables as people read them."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer


def number(value: Any) -> str:
    """A metric in four significant digits; whole numbers stay whole."""
    if value is None:
        return "–"
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value) or 1)))}f}" if abs(value) >= 1 else f"{value:.4f}"
    return f"{value:.2e}"


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null: JSON has no word for them, and strict readers refuse Python's."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def duration(seconds: float) -> str:
    """`4.2 s`, `3 m 07 s`, `5 h 12 m`, `3 d 4 h`."""
    if seconds < 59.5:
        return f"{max(0.0, seconds):.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} m" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def table(rows: list[list[str]], right: Collection[int] = ()) -> None:
    """Prints aligned columns, the first row as the heading; the columns numbered in `right` end flush."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number_, row in enumerate(rows):
        cells = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        typer.secho("  ".join(cells).rstrip(), bold=number_ == 0)  # secho drops the bold where stdout is no terminal


def program() -> str:
    """How to call this command again: `muster`, or its path where the shell would not find it (a virtual environment not activated)."""
    own = sys.argv[0]
    return os.path.relpath(own) if Path(own).name == "muster" and shutil.which("muster") is None else "muster"
