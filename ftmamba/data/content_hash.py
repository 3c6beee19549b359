"""A hash of what a table holds, whatever file it came from."""

import hashlib
from typing import Any

import pyarrow as pa


def content_hash(table: pa.Table) -> bytes:
    """Return a digest of the column names, types and values; chunks and metadata do not count."""
    digest = hashlib.blake2b(digest_size=16)
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(_HashSink(digest), mode="w"), plain.schema) as writer:
        writer.write_table(plain)
    return digest.digest()


class _HashSink:
    """A file to Arrow; only its hash is kept."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._written = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._digest.update(view)
        self._written += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Do nothing: a hash keeps no buffer."""
