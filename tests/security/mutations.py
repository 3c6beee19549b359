"""What a stranger, or a bad disk, may do to a checkpoint: drawn by hypothesis.

A mutation is a function of the checkpoint's folder, with a name that says what it did.
"""

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .tensor_files import TensorFile, replace, take_apart

JSON_FILES = ("config.json", "preprocessor_config.json", "all_results.json")
BROKEN_BEFORE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    struct.error,
)
INDEX = "model.safetensors.index.json"
TENSOR_FILES = ("model*", "vocabularies*", "catalogue*", "local/seen*")
OTHER_FILES = ("README.md", "recipe.yaml", "local/users.parquet")

NUMBERS = (
    -1,
    0,
    1,
    3,
    2**16 + 1,
    2**31,
    2**40,
    2**63,
    10**30,
    -(2**63),
    0.5,
    -1e308,
    1e308,
    1e-320,
)
TEXTS = (
    "", "x" * 10_000, "../../../etc/passwd", "/etc/passwd", "a/b", "\0", "\ud800", "mamba", "F64",
    "<script>alert(1)</script>", "__class__", "kernels-community/evil", "numeric", "vector",
)  # fmt: skip
RAW = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "[" * 5000,
    '{"a":' * 3000,
    "",
    "null,",
    "[]]",
    "\\",
)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", "Q7", 7)
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0)
INTEGERS = (-1, 0, 1, 2**31, 2**62, -(2**63), 2**63 - 1)
EXTRA = (
    "pytorch_model.bin", "training_args.bin", "x.pkl", "adapter_config.json", "model.gguf",
    "shard-00000-model-00001-of-00002.safetensors", INDEX, "generation_config.json", "local/x.pt",
    "config.1.0.0.json", "evil.py", ".metadata", "notes.txt", "processor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One change of a checkpoint."""

    name: str
    apply: Callable[[Path], None]

    def __repr__(self) -> str:
        return self.name


def _file(folder: Path, pattern: str, which: int) -> Path | None:
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    return found[which % len(found)] if found else None


def _on_file(what: str, pattern: str, which: int, change: Callable[[bytes], bytes]) -> Mutation:
    def apply(folder: Path) -> None:
        path = _file(folder, pattern, which)
        # An earlier change may have broken a file beyond this one.
        with suppress(*BROKEN_BEFORE):
            if path is not None:
                replace(path, change(path.read_bytes()))

    return Mutation(f"{what} in {pattern}[{which}]", apply)


@st.composite
def flips(draw: st.DrawFn) -> Mutation:
    """Change a few bytes anywhere."""
    places = draw(
        st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=5)
    )

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for place, mask in places:
            if changed:
                changed[place % len(changed)] ^= mask
        return bytes(changed)

    return _on_file(f"flips {places}", draw(any_file()), draw(st.integers(0, 9)), change)


@st.composite
def cuts(draw: st.DrawFn) -> Mutation:
    """Cut a file short, or write more behind it."""
    kept, more = draw(st.floats(0, 1)), draw(st.binary(max_size=40))
    return _on_file(
        f"keeps {kept:.3f} and adds {more!r}", draw(any_file()), draw(st.integers(0, 9)),
        lambda content: content[: round(kept * len(content))] + more,
    )  # fmt: skip


def any_file() -> SearchStrategy[str]:
    return st.sampled_from((*JSON_FILES, INDEX, *TENSOR_FILES, *OTHER_FILES))


def values() -> SearchStrategy[Any]:
    """Values of every type that JSON has, the unlikely ones first."""
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    return st.sampled_from(
        (None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], deep, [0] * 5000, {"a": {}}, ["x"])
    )


@st.composite
def swaps(draw: st.DrawFn) -> Mutation:
    """Replace, delete, rename or add a value somewhere in a JSON file."""
    pattern = draw(st.sampled_from((*JSON_FILES[:2], *JSON_FILES[:2], *JSON_FILES, INDEX)))
    place, value = draw(st.integers(0, 500)), draw(values())
    action = draw(st.sampled_from(("replace", "replace", "delete", "rename", "add", "raw")))
    raw, name = draw(st.sampled_from(RAW)), draw(st.sampled_from((*TEXTS, "columns", "dtype")))

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        owner, key = (found := _places(document))[place % len(found)]
        if action == "replace":
            owner[key] = value
        elif action == "delete":
            del owner[key]
        elif action == "raw":
            owner[key] = "@@raw@@"
        elif isinstance(owner, dict):
            owner[name] = owner.pop(key) if action == "rename" else value
        text = json.dumps(document).replace('"@@raw@@"', raw)
        return text.encode("utf-8", "surrogatepass")

    what = f"{action} {place} by {value!r:.40} {raw!r:.20} {name!r:.20}"
    return _on_file(what, pattern, 0, change)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return every place in a document as (what it is in, its key there)."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        owner = waiting.pop()
        keys = list(owner) if isinstance(owner, dict) else range(len(owner))
        for key in keys:
            found.append((owner, key))
            if isinstance(owner[key], dict | list) and owner[key]:
                waiting.append(owner[key])
    return found


@st.composite
def headers(draw: st.DrawFn) -> Mutation:
    """Change what the header of a safetensors file says."""
    which = draw(st.integers(0, 99))
    action = draw(st.sampled_from(("shape", "dtype", "offsets", "delete", "rename", "meta", "add")))
    number, dtype = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(DTYPES))
    text, side = draw(st.sampled_from(TEXTS)), draw(st.integers(0, 1))

    def change(content: bytes) -> bytes:
        parts = take_apart(content)
        _change_header(
            parts, parts.names[which % len(parts.names)], action, number, dtype, text, side
        )
        return parts.content()

    what = f"header {action} {which} {number} {dtype} {text!r:.20}"
    return _on_file(what, draw(st.sampled_from(TENSOR_FILES)), draw(st.integers(0, 9)), change)


def _change_header(
    parts: TensorFile, name: str, action: str, number: Any, dtype: Any, text: str, side: int
) -> None:
    entry = parts.header[name]
    if action == "shape" and entry["shape"]:
        entry["shape"][side % len(entry["shape"])] = number
    elif action == "dtype":
        entry["dtype"] = dtype
    elif action == "offsets":
        entry["data_offsets"][side] = number
    elif action == "delete":
        del parts.header[name]
    elif action == "rename":
        parts.header[text] = parts.header.pop(name)
    elif action == "meta":
        metadata = parts.header.setdefault("__metadata__", {})
        keys = ["catalogue", "format_version", "format", text]
        metadata[keys[number % 4 if isinstance(number, int) else 3]] = text
    else:
        size = len(parts.data)
        parts.data += bytes(8)
        parts.header[text] = {"dtype": "I64", "shape": [1], "data_offsets": [size, size + 8]}


@st.composite
def numbers(draw: st.DrawFn) -> Mutation:
    """Change numbers in a tensor to such as must not be there."""
    which, places = draw(st.integers(0, 99)), draw(st.lists(st.integers(0, 2**16), max_size=4))
    real, whole = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(INTEGERS))

    def change(content: bytes) -> bytes:
        parts = take_apart(content)
        entry = parts.header[parts.names[which % len(parts.names)]]
        start, end = entry["data_offsets"]
        form, value = {
            "F32": ("<f", real), "F64": ("<d", real), "I64": ("<q", whole),
            "I32": ("<i", max(-(2**31), min(whole, 2**31 - 1))), "U8": ("<B", whole % 256),
        }[entry["dtype"]]  # fmt: skip
        size = struct.calcsize(form)
        for place in (0, *places):
            if end > start:
                at = start + place % ((end - start) // size) * size
                parts.data[at : at + size] = struct.pack(form, value)
        return parts.content()

    what = f"numbers {which} {places} {real} {whole}"
    return _on_file(what, draw(st.sampled_from(TENSOR_FILES)), draw(st.integers(0, 9)), change)


@st.composite
def files(draw: st.DrawFn) -> Mutation:
    """Delete, rename or exchange files, or put links, folders and pipes in their place."""
    pattern, other, which = draw(any_file()), draw(any_file()), draw(st.integers(0, 9))
    action = draw(st.sampled_from(("delete", "rename", "exchange", "link", "folder", "pipe")))

    def apply(folder: Path) -> None:
        path, second = _file(folder, pattern, which), _file(folder, other, 0)
        if path is None or second is None:
            return
        kept = second.read_bytes()
        path.unlink()
        if action == "rename":
            (folder / f"{path.name}.old").write_bytes(kept)
        elif action == "exchange":
            path.write_bytes(kept)
        elif action == "link":
            path.symlink_to(("/dev/zero", path.name, "/etc/passwd")[which % 3])
        elif action == "folder":
            path.mkdir()
        elif action == "pipe":
            os.mkfifo(path)

    return Mutation(f"{action} {pattern}[{which}] {other}", apply)


@st.composite
def more_files(draw: st.DrawFn) -> Mutation:
    """Add a file that some loader would read."""
    name = draw(st.sampled_from(EXTRA))
    content = draw(st.sampled_from((b"", b"{}", b"\x80\x04\x95garbage.", b"PK\x03\x04", b"null")))

    def apply(folder: Path) -> None:
        if (folder / name).parent.is_dir():
            (folder / name).write_bytes(content)

    return Mutation(f"adds {name} {content!r}", apply)


def mutations() -> SearchStrategy[list[Mutation]]:
    """One to three changes of one checkpoint."""
    one = st.one_of(swaps(), swaps(), headers(), numbers(), flips(), cuts(), files(), more_files())
    return st.lists(one, min_size=1, max_size=3)
