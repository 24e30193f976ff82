"""Objects and text name the same methods."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gradleak.api._methods import attacks_text, chain_text, defenses_text
from gradleak.attacks.dlg import DLG
from gradleak.attacks.span import Span
from gradleak.core.errors import UnknownNameError
from gradleak.core.specs import spec_of
from gradleak.defenses.clip import Clip
from gradleak.defenses.sign import Sign
from gradleak.harness.request import catalogue


@pytest.mark.contract
def test_text_builds_the_objects_again() -> None:
    attacks = (DLG(iterations=7), Span())
    text = attacks_text(attacks)
    assert text is not None and catalogue.make_attacks(text) == attacks
    assert attacks_text("dlg,span") == "dlg,span" and attacks_text(None) is None
    assert catalogue.make_attacks(str(attacks_text(DLG()))) == (DLG(),)


@pytest.mark.contract
def test_a_sequence_inside_a_sequence_is_a_chain() -> None:
    clip, sign = Clip(max_norm=2.0), Sign()
    assert defenses_text([clip, sign]) == (str(spec_of(clip)), str(spec_of(sign)))
    assert defenses_text([(clip, sign), "none"]) == (f"{spec_of(clip)}+{spec_of(sign)}", "none")
    assert defenses_text("sign()") == ("sign()",) and defenses_text(()) == ()
    assert chain_text(()) == "none"


@pytest.mark.errors
def test_a_method_that_no_record_could_name_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Own:
        pass

    with pytest.raises(UnknownNameError):
        chain_text(Own())  # pyright: ignore[reportArgumentType]
