"""What makes a saved checkpoint known to `pipeline()`; apart, for the pipeline imports much."""

import json
import shutil
from pathlib import Path

from .processing_ftmamba import replace_file

TASK = "recommendation"
CUSTOM_PIPELINES = {
    TASK: {"impl": "pipeline_ftmamba.FTMambaRecommendationPipeline", "pt": ["AutoModel"]}
}
"""What `config.json` says, so that Transformers finds the class by the task's name."""

_CONFIG_NAME = "config.json"
_CODE_NAME = "pipeline_ftmamba.py"


def add_pipeline(folder: Path) -> None:
    """Declare the pipeline in the folder of a saved model, and put its code there.

    Args:
        folder: with a `config.json`.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    path = folder / _CONFIG_NAME
    config = json.loads(path.read_text(encoding="utf-8"))
    config["custom_pipelines"] = CUSTOM_PIPELINES
    replace_file(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    code = Path(__file__).with_name(_CODE_NAME)
    for source in {code, *map(Path, get_relative_import_files(code))}:
        target = folder / source.name
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
