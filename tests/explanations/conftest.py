"""The tiny checkpoint that the tests of this folder share with others."""

from tests.tiny_checkpoint import checkpoint_folder, tiny_checkpoint, tiny_items

__all__ = ["checkpoint_folder", "tiny_checkpoint", "tiny_items"]
