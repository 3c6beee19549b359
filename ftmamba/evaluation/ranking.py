"""The top of a ranking: what evaluation and the pipeline on the Hub share."""

from modeling_ftmamba.ranking import top_k

__all__ = ["top_k"]
