"""Why: to try every continuation of a prefix the model need not be run: what the first block's maps read follows from queries, keys, values and
the residual stream of single tokens, made once per token. Only the best continuations are then asked in later blocks. Must not know
gradients, priors or how records are searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.heads import Heads, read_heads
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.span.decoder.projections import Stream, read_stream


@dataclass(slots=True)
class TokenCache:
    """Tokens met so far, at every position, numbered in the order they came.

    Attributes:
        paths: the places that are served: the first attention's input, its output map, and the feed-forward input where its stream adds up plainly.
        inputs: of the first attention.
        stream: None if the feed-forward input is not served.
        number: of each token.
    """

    model: Model
    paths: tuple[str, ...]
    inputs: Float[Tensor, "rows seq features"]
    heads: Heads
    stream: Stream | None
    number: dict[int, int]

    @staticmethod
    def of(model: Model, paths: Sequence[str], tokens: Sequence[int], positions: int) -> TokenCache | None:
        """For the first ``paths`` that can be served; None where none can (attention that is no softmax over keys of single tokens).

        Args:
            paths: in the order of the model.
            tokens: one or more, all different.
        """
        anatomy = model.subject.anatomy
        first, block = anatomy.first_maps()[0].module, anatomy.blocks[0]
        if tuple(paths[:2]) != (first, block.attention_output.module):
            return None
        rows = torch.tensor(tokens).unsqueeze(1).expand(-1, positions)
        heads = read_heads(model.subject, rows, parameters=model.parameters)
        if heads is None:
            return None
        near = {each.module for each in block.behind_attention()[1:]}
        stream = (
            read_stream(paths[2], block.attention_output, model, rows) if len(paths) > 2 and paths[2] in near else None
        )
        return TokenCache(
            model=model,
            paths=tuple(paths[: 2 if stream is None else 3]),
            inputs=_first_inputs(model, first, rows),
            heads=heads,
            stream=stream,
            number={token: at for at, token in enumerate(tokens)},
        )

    def numbers(self, tokens: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
        """Of these tokens; new ones are added."""
        new = [token for token in dict.fromkeys(tokens.flatten().tolist()) if token not in self.number]
        more = TokenCache.of(self.model, self.paths, new, self.inputs.shape[1]) if new else None
        if more is not None:
            self.inputs = torch.cat((self.inputs, more.inputs))
            both = ((getattr(self.heads, name), getattr(more.heads, name)) for name in ("query", "key", "value"))
            query, key, value = (torch.cat(pair) for pair in both)
            self.heads = replace(self.heads, query=query, key=key, value=value)
            if self.stream is not None and more.stream is not None:
                self.stream = replace(self.stream, base=torch.cat((self.stream.base, more.stream.base)))
            self.number |= {token: len(self.number) + at for at, token in enumerate(new)}
        found = [self.number[token] for token in tokens.flatten().tolist()]
        return torch.tensor(found, dtype=torch.int64, device=tokens.device).view(tokens.shape)

    def extend(
        self, prefixes: Int64[Tensor, "prefixes before"], options: Int64[Tensor, " options"]
    ) -> list[Float[Tensor, "prefixes options features"]]:
        """What every place reads of each option behind each prefix, of unit length."""
        place, shape = prefixes.shape[1], (len(prefixes), len(options))
        attended = self.heads.extend(prefixes, options)
        made = [self.inputs[options, place].expand(*shape, -1), attended]
        if self.stream is not None:
            made.append(self.stream.behind(attended, options, place))
        return [torch.nn.functional.normalize(each.double(), dim=-1) for each in made]

    def rows(self, sentences: Int64[Tensor, "sentences length"]) -> list[Float[Tensor, "sentences length features"]]:
        """What every place reads of whole sentences, of unit length."""
        length = sentences.shape[1]
        places = torch.arange(length)
        attended = torch.stack([self.heads.extend_each(sentences[:, :p], sentences[:, p]) for p in range(length)], 1)
        made = [self.inputs[sentences, places], attended]
        if self.stream is not None:
            made.append(self.stream.read(self.stream.base[sentences, places], attended))
        return [torch.nn.functional.normalize(each.double(), dim=-1) for each in made]


def _first_inputs(model: Model, path: str, rows: Tensor) -> Float[Tensor, "rows seq features"]:
    return linear_inputs(model.subject, (path,), rows, parameters=model.parameters)[path]
