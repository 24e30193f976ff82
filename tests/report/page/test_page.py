"""The page: offline, small, escaped, redacted, pure."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from safetensors import safe_open

from gradleak import report
from gradleak.core.errors import DataError

pytestmark = pytest.mark.contract

VOID = {"meta", "br", "img", "wbr", "link", "input", "line", "circle", "polyline"}
SECTIONS = [
    "verdict",
    "threat",
    "scores",
    "comparison",
    "evidence",
    "convergence",
    "untried",
    "reading",
    "reproduction",
]


class Page(HTMLParser):
    """Collects what the tests ask about and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.marks: dict[str, int] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [str(found[name]) for name in ("src", "href", "srcset", "action", "data") if name in found]
        if tag == "b" and found.get("class"):
            self.marks[str(found["class"])] = self.marks.get(str(found["class"]), 0) + 1
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data


def private_strings(run: Path) -> set[str]:
    """Every piece of text and every token id of the tensors: originals and proposals."""
    found: set[str] = set()
    for path in (run / "tensors").iterdir():
        with safe_open(path, framework="numpy") as file:
            for key, text in (file.metadata() or {}).items():
                if key.startswith("pieces."):
                    found |= {piece.strip() for piece in json.loads(text)}
            for key in file.keys():  # noqa: SIM118
                found |= {str(int(token)) for token in file.get_tensor(key).reshape(-1)}
    return found


def test_text_page_has_every_section_and_is_small_and_offline(text_page: str) -> None:
    text, page = text_page, Page(text_page)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert page.links == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert len(text.encode()) < 2_000_000
    assert "default-src 'none'" in text


def test_image_page_holds_images_only_when_revealed(image_run: Path) -> None:
    hidden, shown = Page(report.build(image_run)), Page(report.build(image_run, reveal=True))
    assert "img" not in hidden.tags and hidden.links == []
    assert shown.tags.count("img") == 2 * 4 * 6
    assert all(link.startswith("data:image/png;base64,") for link in shown.links)


def test_redaction_removes_every_private_string(text_run: Path, text_page: str, revealed_page: str) -> None:
    distinctive = {piece for piece in private_strings(text_run) if len(piece) > 3 and not piece.startswith("7")}
    distinctive -= {"about", "call", "since", "Lane", "to", "the"}
    assert len(distinctive) > 40
    assert [piece for piece in distinctive if piece in text_page or str(escape(piece)) in text_page] == []
    shown = Page(revealed_page).text
    assert all(piece in shown for piece in ("Okonkw", "48213", "hunter", "##9931"))


def test_redaction_removes_token_ids(text_run: Path, text_page: str) -> None:
    ids = {text for text in private_strings(text_run) if text.isdecimal() and text.startswith("77")}
    assert len(ids) > 40
    assert [token for token in ids if token in text_page] == []


def test_redaction_keeps_the_colors(text_page: str, revealed_page: str) -> None:
    hidden, shown = Page(text_page), Page(revealed_page)
    assert hidden.marks == shown.marks
    assert {"p", "e", "w", "m"} <= set(hidden.marks)


def test_hostile_tokens_are_escaped(revealed_page: str) -> None:
    assert "<scrip" not in revealed_page and "&lt;scrip" in revealed_page
    assert "\u202e" not in revealed_page and "\u0007" not in revealed_page


def test_hostile_names_are_escaped(make_run, make_record) -> None:
    evil = "<img src=x onerror=alert(1)>\" onload='x"
    base = make_record()
    run = make_run(
        [
            make_record(
                scenario=dict(base.scenario) | {"model": evil},
                attack={"type": evil, "args": {}},
                flags=[evil],
                status=dict(base.status) | {"message": evil, "trace": [[0, 1.0], [5, 0.5]]},
                environment={evil: evil},
            )
        ]
    )
    page = Page(report.build(run))
    assert "img" not in page.tags
    assert page.links == []


def test_page_is_a_function_of_the_run(text_run: Path, text_page: str) -> None:
    assert report.build(text_run) == text_page


def test_page_does_not_depend_on_the_order_of_the_repeats(text_run: Path, text_page: str, tmp_path: Path) -> None:
    copy = shutil.copytree(text_run, tmp_path / "copy")
    lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
    third = len(lines) // 3
    (copy / "records.jsonl").write_text("".join(lines[third:] + lines[:third]))
    assert report.build(copy) == text_page


def test_write_replaces_the_file_and_leaves_nothing_else(text_run: Path, text_page: str, tmp_path: Path) -> None:
    copy = shutil.copytree(text_run, tmp_path / "copy")
    (copy / "report.html").write_text("old")
    before = {path.name for path in copy.iterdir()}
    path = report.write(copy)
    assert path == copy / "report.html"
    assert path.read_text(encoding="utf-8") == text_page
    assert {path.name for path in copy.iterdir()} == before


def test_never_says_protected_or_safe(text_page: str, image_run: Path) -> None:
    for page in (text_page, report.build(image_run)):
        words = {word.strip(".,;:()").lower() for word in Page(page).text.split()}
        assert not {"protected", "protects", "safe", "secure", "safely"} & words


def test_page_names_what_was_not_tried(text_page: str) -> None:
    text = Page(text_page).text
    assert "inverting_gradients" in text
    assert "eavesdropper" in text and "naive server" in text
    assert "no column space tells tokens apart" in text


def test_reproduction_lists_command_seeds_and_environment(text_page: str) -> None:
    text = Page(text_page).text
    for part in ("gradleak audit minilm --batch-size 2", "0–2", "sha256:4be1c0ffee", "2.13.0", "0123abc", "eager"):
        assert part in text


def test_pieces_absent_shows_ids_only_when_revealed(make_run, make_record, save_tokens) -> None:
    run = make_run([make_record(cell="bare")])
    save_tokens(run, "bare", {"truth.0": [123457, 123458], "guess.0": [123457, 99991]})
    assert "123457" not in report.build(run) and "99991" not in report.build(run)
    assert "123457" in report.build(run, reveal=True)


def test_tokens_are_shaded_by_what_the_attack_claims(make_run, make_record, save_tokens) -> None:
    run = make_run([make_record(cell="sure")])
    claims = {"confidence.0": [0.999, 0.93, 0.6, 0.2]}
    save_tokens(run, "sure", {"truth.0": [1, 2, 3, 4], "guess.0": [1, 2, 9, 4]}, claims=claims)
    text = report.build(run)
    for shade in ("p s3", "p s2", "w s1", "p s0"):
        assert f'<b class="{shade}">' in text
    assert "by its own confidence 1.3 wrong" in Page(text).text
    assert "how probable the attack itself holds it" in text
    silent = make_run([make_record(cell="silent")])
    save_tokens(silent, "silent", {"truth.0": [1], "guess.0": [1]})
    assert "how probable the attack itself holds it" not in report.build(silent)


def test_claims_that_do_not_fit_their_tokens_are_refused(make_run, make_record, save_tokens) -> None:
    run = make_run([make_record(cell="sure")])
    save_tokens(run, "sure", {"truth.0": [1, 2], "guess.0": [1, 2]}, claims={"confidence.0": [0.5]})
    with pytest.raises(DataError, match="claim"):
        report.build(run)


def test_false_positives_and_the_certificate_stand_beside_the_scores(make_run, make_record) -> None:
    status = make_record().status
    found = {"proposed": {"proposed": 40, "wrong": 3, "wrong_records": 1}, "certificate": 0.25}
    record = make_record(status={**status, **found, "worst_tensors": [["head.weight", 0.5]]})
    text = Page(report.build(make_run([record]))).text
    assert "3 of 40 tokens wrong, 1 false record" in text
    assert "2.5e-01head.weight 5.0e-01" in text.replace("\u200b", "")


def test_what_is_due_to_a_language_prior_stands_beside_the_scores(make_run, make_record) -> None:
    status = make_record().status
    proposed = {"proposed": 40, "wrong": 3, "wrong_records": 0}
    told = {"tokens_due_to_prior": 7.0, "said_by_prior_alone": 2.0, "proposed_tokens": 41.0}
    text = Page(report.build(make_run([make_record(status={**status, "proposed": proposed, "statistics": told})]))).text
    assert "3 of 40 tokens wrong; 7 of 41 due to a language prior (2 said by it alone)" in text
    plain = Page(report.build(make_run([make_record(status={**status, "proposed": proposed})]))).text
    assert "3 of 40 tokens wrong" in plain and "due to a language prior" not in plain


def test_record_without_proposal_is_all_missing(make_run, make_record, save_tokens) -> None:
    run = make_run([make_record(cell="half")])
    save_tokens(run, "half", {"truth.0": [1, 2, 3]})
    page = Page(report.build(run))
    assert "no proposal for this record" in page.text
    assert page.marks["m"] == 3 + 1  # the legend shows one


def test_long_run_stays_under_two_megabytes(make_run, make_record, save_tokens) -> None:
    records = [make_record(cell=f"c{i}", attack={"type": f"attack{i}", "args": {}}) for i in range(30)]
    run = make_run(records)
    for record in records:
        ids = {f"{side}.{i}": list(range(300)) for side in ("truth", "guess") for i in range(8)}
        save_tokens(run, record.cell, ids)
    text = report.build(run, reveal=True)
    assert len(text.encode()) < 2_000_000
    assert "left out to keep this page small" in text
    assert "140 more" in text


def test_broken_tensor_file_is_named(make_run, make_record) -> None:
    run = make_run([make_record(cell="broken")])
    (run / "tensors").mkdir()
    (run / "tensors" / "broken.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(DataError, match=r"broken\.safetensors"):
        report.build(run)


def test_pieces_that_do_not_fit_their_tokens_are_refused(make_run, make_record, save_tokens) -> None:
    run = make_run([make_record(cell="odd")])
    save_tokens(run, "odd", {"truth.0": [1, 2, 3]}, {"pieces.truth.0": json.dumps(["a"])})
    with pytest.raises(DataError, match="1 pieces of text for the 3 tokens"):
        report.build(run)


def test_cell_names_cannot_leave_the_run_folder(make_run, make_record, save_tokens, tmp_path: Path) -> None:
    run = make_run([make_record(cell="../../outside")])
    save_tokens(tmp_path, "outside", {"truth.0": [424243]})
    assert "424243" not in report.build(run, reveal=True)


def test_folder_without_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run folder"):
        report.build(tmp_path)
