import os

import pytest

from ftmamba.data.named_datasets import movielens_100k


@pytest.fixture(scope="session")
def movielens():
    """Ratings from the folder FTMAMBA_ML100K, else the cache, else downloaded once."""
    try:
        return movielens_100k(os.environ.get("FTMAMBA_ML100K")).interactions
    except FileNotFoundError as error:
        pytest.skip(f"MovieLens-100K is not there and could not be downloaded: {error}")
