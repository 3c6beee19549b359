"""`ftmamba kernels`: writes the kernels that need no compiler as a repository for `kernels`.

`kernels.get_local_kernel(folder)`, or `get_kernel` once the folder is on the Hub as a kernel
repository, loads it into programs without this package. It holds the Triton scan and mixer, and the
SSD mixer in blocks of rows; the C kernels are built for one machine and stay here.
"""

import hashlib
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

NAME, VERSION = "ftmamba-kernels", 1
BACKENDS = ("cpu", "cuda", "rocm")
MODULES = (
    "library", "linears", "ssd_row_blocks", "triton_backward", "triton_conv",
    "triton_launch", "triton_layer", "triton_scan",
)  # fmt: skip
INIT = '''"""Kernels of FT-Mamba: the selective scan by Triton, the SSD mixer in blocks of rows."""

from .library import MambaParameters
from .ssd_row_blocks import SSDParameters, can_mix_in_row_blocks, mix_in_row_blocks
from .triton_launch import why_not
from .triton_layer import triton_layer, triton_mixer, triton_scan

__all__ = [
    "MambaParameters",
    "SSDParameters",
    "can_mix_in_row_blocks",
    "mix_in_row_blocks",
    "triton_layer",
    "triton_mixer",
    "triton_scan",
    "why_not",
]
'''
README = f"""---
license: apache-2.0
library_name: kernels
tags: [kernels, mamba]
---

# {NAME}

The selective scan and the Mamba mixer by Triton, with gradients (`triton_scan`, `triton_mixer`,
`triton_layer`), and the Mamba-2 mixer in blocks of rows for CPUs (`mix_in_row_blocks`). `why_not()`
says why Triton cannot run where it cannot.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="written anew; upload it as a kernel repository")


def run(arguments: Namespace) -> None:
    """Write the folder and say what loads it."""
    write_repository(arguments.folder)
    print(f'kernels.get_local_kernel(Path("{arguments.folder}")) loads it')


def write_repository(folder: Path) -> None:
    """Write the repository into a new or empty folder."""
    from ftmamba.atomic import whole_folder

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{str(folder)!r} holds files; name a new folder")
    here = Path(__file__).parents[1] / "kernels"
    files = {f"{name}.py": (here / f"{name}.py").read_bytes() for name in MODULES}
    files["__init__.py"] = INIT.encode()
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:10]
    with whole_folder(folder, owned=("*",)) as partial:
        (partial / "README.md").write_text(README, encoding="utf-8")
        for backend in BACKENDS:
            variant = partial / "build" / f"torch-{backend}"
            variant.mkdir(parents=True)
            for name, content in files.items():
                (variant / name).write_bytes(content)
            metadata = {
                "id": f"_{NAME.replace('-', '_')}_{backend}_{digest}", "name": NAME,
                "version": VERSION, "license": "Apache-2.0", "python-depends": [],
                "backend": {"type": backend},
            }  # fmt: skip
            (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
