"""Kinds of text that are hard for a search by spans: records that nearly agree, tokens that repeat, scripts that fall into bytes.

Forms, logs and numbers are written by Faker from a seed; code and JSON are cut from files of installed packages; other languages are
Faker's own. Ten inputs of each kind are written by hand (``hard_inputs.toml``). A byte-level tokenizer of 4,096 pieces is trained on text
of the same packages, so that every kind falls into pieces as it would for a model of its own. Must not know the attack.
"""

from __future__ import annotations

import functools
import json
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import faker
import sklearn
from faker import Faker
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
_PIECES = 8
"""Lines of a file that a piece of code or JSON is cut from at most."""
_LOCALES = ("de_DE", "fr_FR", "es_ES", "ru_RU", "ja_JP", "pl_PL", "zh_CN", "el_GR", "ar_AA", "la")
_EMOJI = "😀😂😱👍❤️🎉🙏🔥🌙✨🐶🐱💔🚑🏠"


def kinds() -> tuple[str, ...]:
    return tuple(_MAKERS)


def texts(kind: str, count: int, seed: int) -> list[str]:
    """``count`` different texts of a kind."""
    rng = random.Random(f"{kind}-{seed}")
    source = Faker("en_US")
    source.seed_instance(rng.randrange(2**32))
    result: dict[str, None] = {}
    stream = _MAKERS[kind](rng, source)
    while len(result) < count:
        result[next(stream)] = None
    return list(result)


def by_hand(kind: str, half: str) -> list[str]:
    """The five inputs of a kind that were written by hand; ``half`` is ``open`` or ``held``."""
    return list(_hand_written()[kind][half])


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on text of installed packages; the same files give the same pieces."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


@functools.cache
def corpus() -> tuple[str, ...]:
    """Prose, code, data and lists of words of many languages, from packages that are installed with the benchmarks."""
    prose = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
    words = sorted((Path(faker.__file__).parent / "providers" / "lorem").glob("*/__init__.py"))
    return tuple(path.read_text(encoding="utf-8") for path in (*prose, *_code_files(), *words))


@functools.cache
def _code_files() -> tuple[Path, ...]:
    folder = Path(sklearn.__file__).parent
    return tuple(sorted((*(folder / "linear_model").glob("*.py"), *(folder / "metrics").glob("*.py"))))


@functools.cache
def _hand_written() -> Mapping[str, Mapping[str, Sequence[str]]]:
    return tomllib.loads(Path(__file__).with_name("hard_inputs.toml").read_text(encoding="utf-8"))


def _forms(rng: random.Random, source: Faker) -> Iterator[str]:
    """One form; one or two of its entries change from record to record."""
    base = {
        "Patient": [source.last_name() for _ in range(3)],
        "ward": ["4B", "3B"],
        "result": ["negative", "positive"],
        "doctor": [source.last_name() for _ in range(2)],
        "leaves": ["Monday", "Friday"],
    }
    while True:
        yield "; ".join(f"{name}: {rng.choice(options)}" for name, options in base.items())


def _code(rng: random.Random, source: Faker) -> Iterator[str]:
    files = _code_files()
    while True:
        lines = rng.choice(files).read_text(encoding="utf-8").splitlines()
        start = rng.randrange(len(lines))
        piece = "\n".join(lines[start : start + _PIECES]).strip("\n")
        if len(piece) > 40 and '"""' not in piece:
            yield piece


def _json(rng: random.Random, source: Faker) -> Iterator[str]:
    while True:
        rows = [{"id": rng.randrange(3), "tags": [rng.randrange(2) for _ in range(3)], "next": None} for _ in range(3)]
        yield json.dumps(rows)


def _logs(rng: random.Random, source: Faker) -> Iterator[str]:
    host = source.ipv4()
    while True:
        yield (
            f"10:0{rng.randrange(3)}:0{rng.randrange(3)} {rng.choice(('INFO', 'WARN'))} {host} retry {rng.randrange(3)} of 3 "
            f"failed; retry {rng.randrange(3)} of 3 {rng.choice(('failed', 'ok'))}"
        )


def _numbers(rng: random.Random, source: Faker) -> Iterator[str]:
    while True:
        yield " ".join(str(rng.choice((0, 1, 2, 10, 100))) for _ in range(16))


def _languages(rng: random.Random, source: Faker) -> Iterator[str]:
    speakers = [Faker(locale) for locale in _LOCALES]
    for speaker in speakers:
        speaker.seed_instance(rng.randrange(2**32))
    while True:
        yield rng.choice(speakers).sentence(nb_words=9)


def _emoji(rng: random.Random, source: Faker) -> Iterator[str]:
    while True:
        mark = rng.choice(_EMOJI)
        yield f"{source.word()} {mark * rng.randrange(2, 5)} {source.word()} {mark}"


def _prefixes(rng: random.Random, source: Faker) -> Iterator[str]:
    """Sentences that begin alike for most of their words; none is the beginning of another one."""
    opening = source.sentence(nb_words=8).rstrip(".")
    while True:
        yield f"{opening} {source.sentence(nb_words=5).lower()}"


def _paragraphs(rng: random.Random, source: Faker) -> Iterator[str]:
    words = " ".join("\n".join(corpus()[:8]).split()).split(" ")
    while True:
        start = rng.randrange(len(words) - 40)
        yield " ".join(words[start : start + 40])


_MAKERS: Mapping[str, Callable[[random.Random, Faker], Iterator[str]]] = {
    "forms": _forms,
    "code": _code,
    "json": _json,
    "logs": _logs,
    "numbers": _numbers,
    "languages": _languages,
    "emoji": _emoji,
    "prefixes": _prefixes,
    "paragraphs": _paragraphs,
}
