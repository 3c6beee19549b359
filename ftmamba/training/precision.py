"""Whether `mixed_precision: bf16` computes in bfloat16 on this CPU, or in float32."""

import logging

from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, broadcast_object_list

from ftmamba.kernels.softmax import seconds_of_products

logger = logging.getLogger(__name__)

SLOWER = 1.05
"""Float32 is taken where bfloat16 takes so many times as long; less than that is noise."""


def choose_bfloat16(
    accelerator: Accelerator, shape: tuple[int, int, int], resumed: bool | None
) -> bool:
    """Choose, and set Accelerate's autocast accordingly.

    Processors without instructions for bfloat16 multiply it many times slower than float32. The
    main process measures and the others follow.

    Args:
        accelerator: what will prepare the model.
        shape: positions of a step, items that each is scored with, size of an embedding.
        resumed: what the run that is resumed chose; None chooses now.
    """
    if accelerator.mixed_precision != "bf16":
        return False
    if accelerator.device.type != "cpu":
        return True
    chosen = resumed
    if chosen is None:
        times = seconds_of_products(*shape) if accelerator.is_main_process else None
        narrow, wide = broadcast_object_list([times])[0]
        chosen = bool(narrow < SLOWER * wide)
        logger.info(
            "mixed_precision: bf16: products of %d x %d x %d take %.2f ms in bfloat16 and %.2f in "
            "float32 here; the run computes in %s",
            *shape, 1000 * narrow, 1000 * wide, "bfloat16" if chosen else "float32",
        )  # fmt: skip
    accelerator.autocast_handler = AutocastKwargs(enabled=chosen)
    return chosen
