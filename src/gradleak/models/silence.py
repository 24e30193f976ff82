"""Loading a model prints load reports, progress bars and advice that bury our own messages, and building one
draws from the global generator. Both are kept inside a block here, and its long messages on one line. Must not hide errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the transformers library reports errors only, and Python warnings are not shown."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global CPU generator is seeded; after, it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def one_line(error: BaseException, limit: int = 300) -> str:
    """A library's message on one line of at most ``limit`` characters."""
    text = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
    words = " ".join(text.split()) or type(error).__name__
    return words if len(words) <= limit else f"{words[: limit - 3]}..."
