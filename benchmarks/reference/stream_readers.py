"""One shuffled pass over Parquet token rows in a bucket, as a library's own documentation does it. Prints one JSON line.

`python stream_readers.py LIBRARY URL …`: LIBRARY is `datasets` or `ray-data`; credentials and endpoint come from the environment.
Tokens are bytes of 16-bit numbers; each row is turned into an array, as a collate function would.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

import numpy as np

BATCH = 32
BUFFER = 2_000
"""Rows that are shuffled at once."""


def datasets(urls: list[str]) -> Iterator[list[bytes]]:
    """Hugging Face datasets, streaming."""
    from datasets import load_dataset

    options = {"client_kwargs": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    found = load_dataset("parquet", data_files={"train": urls}, split="train", streaming=True, storage_options=options)
    for batch in found.shuffle(seed=0, buffer_size=BUFFER).iter(BATCH):
        yield batch["input_ids"]


def ray_data(urls: list[str]) -> Iterator[list[bytes]]:
    """Ray Data on this machine."""
    import pyarrow.fs
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    filesystem = pyarrow.fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], region=os.environ["AWS_REGION"])
    found = ray.data.read_parquet([url.removeprefix("s3://") for url in urls], filesystem=filesystem)
    for batch in found.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=BUFFER, local_shuffle_seed=0):
        yield batch["input_ids"]


def main() -> None:
    library, *urls = sys.argv[1:]
    began, first, rows, tokens = time.perf_counter(), 0.0, 0, 0
    for batch in {"datasets": datasets, "ray-data": ray_data}[library](urls):
        arrays = [np.frombuffer(row, np.uint16) for row in batch]
        first = first or time.perf_counter() - began
        rows += len(arrays)
        tokens += sum(map(len, arrays))
    print(json.dumps({"kind": "pass", "rows": rows, "tokens": tokens, "first_s": first, "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
