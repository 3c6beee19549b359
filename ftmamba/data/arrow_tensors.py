"""Tensors as Arrow columns on disk: one row a record, several slots packed in a fixed-size list.

Shapes: R rows, W slots.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

Array = NDArray[np.generic]


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays of R rows, (R,) or (R, W), as an Arrow stream that can be memory-mapped.

    The file is also one that `datasets.Dataset.from_file` reads.
    """
    table = table_of_arrays(arrays)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def table_of_arrays(arrays: Mapping[str, Array]) -> pa.Table:
    """Return arrays of R rows, (R,) or (R, W), as an Arrow table."""
    return pa.table({name: _packed(array) for name, array in arrays.items()})


def map_table(path: Path) -> pa.Table:
    """Return the table of a file, mapped and not read.

    Raises:
        ValueError: the file is cut off or no Arrow stream.
    """
    return map_table_and_file(path)[0]


def map_table_and_file(path: Path) -> tuple[pa.Table, mmap.mmap]:
    """Return the table of a file, mapped and not read, and the mapping in which its buffers lie.

    Raises:
        ValueError: the file is cut off or no Arrow stream.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_stream(pa.py_buffer(mapping)).read_all(), mapping
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:  # Arrow's errors are ValueErrors
        raise ValueError(
            f"file '{path}' is damaged: {error}; delete its folder and encode again"
        ) from error


def column_chunks(column: pa.ChunkedArray) -> list[Array]:
    """Return the chunks of a column as arrays, (R,) or (R, W), without copying."""
    return [_unpacked(chunk) for chunk in column.chunks]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return every column of a file as a tensor of its own memory."""
    table = map_table(path)
    tensors = {}
    for name in table.column_names:
        chunks = column_chunks(table.column(name))
        # Concatenating copies, so that the tensor is writable and outlives the file.
        tensors[name] = torch.from_numpy(np.concatenate(chunks))
    return tensors


def _packed(array: Array) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1]
    )


def _unpacked(chunk: pa.Array) -> Array:
    if not pa.types.is_fixed_size_list(chunk.type):
        return chunk.to_numpy(zero_copy_only=True)  # type: ignore[no-any-return]
    return chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, chunk.type.list_size)  # type: ignore[no-any-return]
