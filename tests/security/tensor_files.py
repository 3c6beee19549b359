"""Safetensors files taken apart and put together again, right or wrong."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from modeling_ftmamba.catalogue import weights_fingerprint
from modeling_ftmamba.processing_ftmamba import fingerprint_of


@dataclass
class TensorFile:
    """The header of a safetensors file, and its bytes after that."""

    header: dict[str, Any]
    data: bytearray = field(default_factory=bytearray)

    def content(self) -> bytes:
        """Return the file's bytes, whatever the header says."""
        text = json.dumps(self.header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(self.data)

    @property
    def names(self) -> list[str]:
        """The tensors, in order."""
        return sorted(name for name in self.header if name != "__metadata__")


def take_apart(content: bytes) -> TensorFile:
    """Return the parts of a file that is still right."""
    size = int.from_bytes(content[:8], "little")
    return TensorFile(json.loads(content[8 : 8 + size]), bytearray(content[8 + size :]))


def sign_again(folder: Path) -> None:
    """Make fingerprints fit what the files hold now: they protect from mishaps, not from people."""
    # What is broken beyond that stays as it is.
    with suppress(ValueError, LookupError, TypeError, RecursionError, SafetensorError):
        config = folder / "preprocessor_config.json"
        values = json.loads(_read(config))
        arrays = load(_read(folder / "vocabularies.safetensors"))
        columns = [values["user_columns"], values["item_columns"]]
        numbers = {name: tensor.numpy() for name, tensor in arrays.items()}
        values["fingerprint"] = fingerprint_of(numbers, columns)
        replace(config, json.dumps(values).encode())
    with suppress(ValueError, LookupError, TypeError, RuntimeError, SafetensorError):
        weights: dict[str, Any] = {}
        for path in folder.glob("model*.safetensors"):
            weights |= load(_read(path))
        path = folder / "catalogue.safetensors"
        parts = take_apart(_read(path))
        facts = json.loads(parts.header["__metadata__"]["catalogue"])
        model: Any = SimpleNamespace(state_dict=lambda: weights)
        facts["fingerprint"] = weights_fingerprint(model)
        parts.header["__metadata__"]["catalogue"] = json.dumps(facts)
        replace(path, parts.content())


def _read(path: Path) -> bytes:
    """Read a file, but no pipe, which would never end."""
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    return path.read_bytes()


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: neither another link to it, nor a map of it into memory, is changed."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
