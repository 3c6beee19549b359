"""Reading a `config.json` that a stranger wrote: it may not choose code, files or kernels."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from .checked_files import damaged, read_json, shown
from .configuration_ftmamba import near

LARGEST_NUMBER = 2**16
MOST_LAYERS = 256

_ATTENTION = (None, "eager", "sdpa")
_DTYPES = (None, "float32", "float16", "bfloat16", "float64")
_VERSION = "another model, or a newer release wrote it"
# What Transformers writes beside the fields of the architecture, and what each may be. Others, such
# as the name of an attention kernel on the Hub or of a weights file, it would follow.
_OF_TRANSFORMERS: dict[str, Callable[[Any], bool]] = {
    "architectures": lambda value: isinstance(value, list | None),
    "attn_implementation": lambda value: value in _ATTENTION,
    "auto_map": lambda value: isinstance(value, dict),
    "custom_pipelines": lambda value: isinstance(value, dict),
    "dtype": lambda value: value in _DTYPES,
    "id2label": lambda value: isinstance(value, dict),
    "label2id": lambda value: isinstance(value, dict),
    "model_type": lambda value: isinstance(value, str),
    "output_attentions": lambda value: isinstance(value, bool),
    "output_hidden_states": lambda value: isinstance(value, bool),
    "return_dict": lambda value: isinstance(value, bool),
    "torch_dtype": lambda value: value in _DTYPES,
    "transformers_version": lambda value: isinstance(value, str),
}


def read_config(
    path: Path,
    *,
    model_type: str,
    shared: Collection[str],
    own: Collection[str],
    build: Callable[..., object],
) -> dict[str, Any]:
    """Read a `config.json` whose fields make a config.

    Args:
        path: of the file.
        model_type: the one that it must name.
        shared: fields of an architecture, which a tower's section may hold too.
        own: further fields, such as the sections of the towers.
        build: makes a config of the fields, to see whether it can be made.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file breaks a rule.
    """
    values = read_json(path)
    if values.get("model_type") != model_type:
        raise damaged(
            path,
            f"describes a model of type {shown(values.get('model_type'))}, this code is of "
            f"{model_type!r}",
            "give the checkpoint of an FT-Mamba",
        )
    _check_keys(path, values, {*shared, *own, *_OF_TRANSFORMERS}, "")
    for key, allows in _OF_TRANSFORMERS.items():
        if key in values and not allows(values[key]):
            raise damaged(path, f"sets {key} to {shown(values[key])}", "remove that line")
    _check_numbers(path, values)
    for name in own:
        if isinstance(section := values.get(name), dict):
            _check_keys(path, section, {*shared, "columns"}, f"{name}: ")
            _check_numbers(path, section)
    try:
        build(**values)
    except Exception as error:
        text = " ".join(str(error).split())
        problem = f"makes no config ({text:.400})"
        raise damaged(path, problem, "correct it or save it again") from None
    return values


def _check_keys(path: Path, values: Mapping[str, Any], known: Collection[str], place: str) -> None:
    for key in values:
        if key not in known:
            raise damaged(
                path,
                f"has the unknown field {place}{shown(key)}{near(key, known)}",
                f"remove it, if {_VERSION}: take the code saved beside it",
            )


def _check_numbers(path: Path, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        most = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_NUMBER
        if isinstance(value, int | float) and abs(value) > most:
            raise damaged(path, f"sets {key} to {shown(value)}, at most {most} is read")
