"""Putting short documents into rows of at most `capacity` tokens.

Best-fit decreasing (Johnson 1974): the longest document first, into the fullest row that still has room; at most 11/9 of the
fewest rows possible, and one. Rows are kept by the room they have left, so that a document costs a bisection over the distinct
rooms (at most `capacity` of them) and not a look at every row; ties go by number, so that the result is deterministic.
"""

from __future__ import annotations

import bisect


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Groups of document numbers whose lengths add up to at most `capacity` each; every document in one group.

    Raises:
        ValueError: a document is longer than `capacity`.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []  # distinct remaining capacities that some row has, ascending
    open_rows: dict[int, list[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[number]
        if length > capacity:
            raise ValueError(f"document {number} has {length} tokens; a row holds {capacity}")
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        else:
            room, row = capacity, len(groups)
            groups.append([])
        groups[row].append(number)
        left = room - length
        if left not in open_rows:
            bisect.insort(rooms, left)
            open_rows[left] = []
        open_rows[left].append(row)
    return groups
