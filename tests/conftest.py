"""What all tests share: one thread, repeatable properties, a cache of their own."""

import os

# Set before torch is imported, and inherited by the processes that tests start: two busy threads on a small
# machine that also does something else can be a hundred times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests ask nobody for weights, whatever the machine could reach.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    os.environ["TRAINWELL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
