"""What all tests share: a fixed seed, and no network."""
from __future__ import annotations

import os

import pytest

# Before huggingface_hub is imported, so that nothing here, nor a process started here, asks the Hub.
os.environ['HF_HUB_OFFLINE'] = '1'
# The tests' tensors are tiny: more threads only wait for each other, above all on a busy machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Draw the same weights and images in every run, whichever tests run before."""
    import torch

    torch.manual_seed(0)
