"""The tiny checkpoint for strangers to break."""

from tests.tiny_checkpoint import tiny_checkpoint, tiny_items

__all__ = ["tiny_checkpoint", "tiny_items"]
