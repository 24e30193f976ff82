"""A page can hold ten thousand tokens, and a template call for each would take most of the time. Must not know
private from public: what it is given is what the page shows.
"""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

from gradleak.report.page.evidence import Pair, Token


def pair(shown: Pair) -> Markup:
    """The tokens of a record: columns of what was sent over what was found, or one row where there are no places."""
    if shown.tokens:
        head = "<i><b class=k>sent</b><b class=k>found</b></i>"
        columns = [f"<i>{_chip(original)}{_chip(recovered)}</i>" for original, recovered in shown.tokens]
    else:
        head = "<i><b class=k>sent</b></i>"
        columns = [f"<i>{_chip(token)}</i>" for token in shown.originals]
    rest = [f"<i><b class=k>{shown.hidden} more</b></i>"] if shown.hidden else []
    return Markup(head + "".join(columns + rest))


def bag(tokens: Iterable[Token]) -> Markup:
    return Markup("".join(f"<i>{_chip(token)}</i>" for token in tokens))


LEVELS = (0.5, 0.9, 0.99)
"""Claimed probabilities at which the shade of a token changes."""


def shade(sure: float) -> str:
    """The class of the style sheet for a claimed probability: s0 (below one half) to s3."""
    return f"s{sum(sure >= level for level in LEVELS)}"


def _chip(token: Token | None) -> str:
    if token is None:
        return "<b></b>"
    # Quoted only where two classes need it: a page can hold ten thousand of them.
    style = token.mark.value if token.sure is None else f'"{token.mark.value} {shade(token.sure)}"'
    return f"<b class={style}>{escape(token.text)}</b>"
