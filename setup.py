"""The build step that pyproject.toml cannot say: a wheel carries `configuration/` inside."""

import shutil
from pathlib import Path

from setuptools import setup
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


setup(cmdclass={"build_py": BuildWithConfiguration})
