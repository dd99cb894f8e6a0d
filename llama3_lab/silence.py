"""quiet(): what transformers and its kin print about themselves, switched off for a while."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers, PEFT, TRL and datasets print about themselves, and only inside."""
    from transformers.utils import logging as hf

    level, chatty = hf.get_verbosity(), hf.is_progress_bar_enabled()
    others = [logging.getLogger(n) for n in ("trl", "peft", "datasets", "accelerate", "huggingface_hub")]
    levels = [o.level for o in others]
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    for o in others:
        o.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf.set_verbosity(level)
        if chatty:
            hf.enable_progress_bar()
        for o, before in zip(others, levels, strict=True):
            o.setLevel(before)
