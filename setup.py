"""What pyproject.toml cannot say: a wheel carries `configuration/`, and C kernels if they build."""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


class BuildWithConfiguration(build_py):
    """Copy presets, recipes and launch files to `ftmamba/_configuration`.

    An editable install reads them from the source tree instead.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "ftmamba" / "_configuration"
        shutil.copytree("configuration", target, dirs_exist_ok=True)


SOURCES = Path("ftmamba/kernels/csrc")
# Optional: without a C compiler, or with one that lacks vector extensions, the package installs all
# the same and the scan runs in plain torch. ctypes loads the library: no header of Python is used.
KERNELS = Extension(
    "ftmamba.kernels._native",
    sources=sorted(map(str, SOURCES.glob("*.c"))),
    depends=sorted(map(str, SOURCES.glob("*.h"))),
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-fvisibility=hidden"],
    optional=True,
)

setup(cmdclass={"build_py": BuildWithConfiguration}, ext_modules=[KERNELS])
