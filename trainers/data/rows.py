"""What a task makes of raw rows: examples that can be compared, cleaned and split before anything is tokenised."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

from trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


class Example(NamedTuple):
    """One row."""

    content: str
    """What duplicates and the split look at."""
    label: str | None
    payload: Any
    """What the task tokenises; None: there is nothing."""
    words: str | None = None
    """What near duplicates look at, where that is not the content."""
    group: str | None = None
    """The value of `data.group_by`."""
    problem: UserError | None = None
    """Why the row could not be read."""

    @classmethod
    def blank(cls) -> Example:
        """A row with its text or label missing."""
        return cls("", None, None)


def column(table: pa.Table, key: str, name: str) -> pa.ChunkedArray:
    """A column by name; `key` is the job's key that names it. Raises UserError with the columns there are."""
    if name not in table.column_names:
        close = difflib.get_close_matches(name, table.column_names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"there is no column {name!r}; the data has {', '.join(table.column_names) or 'none'}{hint}", key=key)
    return table.column(name)
