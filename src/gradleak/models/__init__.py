"""What an architecture is made of, and the model under audit as one object. Knows the core and nothing above it."""

from __future__ import annotations

from gradleak.models.anatomy import Adapter, Anatomy, Block, LinearMap
from gradleak.models.loading.load import load_subject
from gradleak.models.loading.lora import LoRA, with_lora
from gradleak.models.reading.anatomy_reader import read_anatomy
from gradleak.models.running.attention import ensure_differentiable, probe_double_backward
from gradleak.models.subject import Subject
from gradleak.models.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer

__all__ = [
    "Adapter",
    "Anatomy",
    "Block",
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "LinearMap",
    "LoRA",
    "Subject",
    "Tokenizer",
    "ensure_differentiable",
    "load_subject",
    "probe_double_backward",
    "read_anatomy",
    "with_lora",
]
