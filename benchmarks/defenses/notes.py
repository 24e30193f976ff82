"""The numbers of the notes' small tests, and where ours are. Imported by ``table.py``; prints nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Noted:
    """One number.

    Attributes:
        what: the test; number: what the notes have.
        measure, defense, value: where ours is among the cells.
    """

    what: str
    number: str
    measure: str
    defense: str
    value: str


_CDP, _SDP = (f"{name}(max_norm=4.0, noise_multiplier=6.0)" for name in ("fed_cdp", "fed_sdp"))
_PPP = "precode()+ppp(relative_std={})"

NOTED = (
    Noted("no defense, L2", "91.8 dB", "pictures", "none", "L2, naive"),
    Noted("no defense, cosine", "47.0 dB", "pictures", "none", "cosine, naive"),
    Noted("AdaDefense, naive L2", "4.1 dB", "pictures", "ada_defense()", "L2, naive"),
    Noted("AdaDefense, naive cosine", "5.3 dB", "pictures", "ada_defense()", "cosine, naive"),
    Noted(
        "AdaDefense, soft sign and cosine",
        "14.2 dB (11.9, 18.1, 12.5)",
        "pictures",
        "ada_defense()",
        "cosine, informed",
    ),
    Noted("AdaDefense, rank by signs", "1 in 6 of 6", "rank", "ada_defense()", "likelihood, informed"),
    Noted("noise of 1 rms, rank", "1 in 5 of 6", "rank", "gaussian(relative_std=1.0)", "likelihood, informed"),
    Noted("noise of 3 rms, rank", "38, 19, 8, 2, 1, 3", "rank", "gaussian(relative_std=3.0)", "likelihood, informed"),
    Noted("clip, rank by cosine", "1 in 6 of 6", "rank", "clip(max_norm=1.0)", "cosine, naive"),
    Noted("prune 99 %, naive cosine rank", "49, 127, 16, 15, 105, 4", "rank", "prune(fraction=0.99)", "cosine, naive"),
    Noted("prune 99 %, rank on the support", "1 in 6 of 6", "rank", "prune(fraction=0.99)", "likelihood, informed"),
    Noted("prune 90 %, rank on the support", "1 in 6 of 6", "rank", "prune(fraction=0.9)", "likelihood, informed"),
    Noted("Fed-CDP C=4 z=6, one step seen", "below 10 dB (expected)", "during_training", _CDP, "L2, informed"),
    Noted("Fed-SDP, one step seen", "above 60 dB (expected)", "during_training", _SDP, "L2, informed"),
    Noted("Fed-SDP, at the server", "–", "pictures", _SDP, "L2, informed"),
    Noted("tanh network, no defense", "61.6, 65.6 dB", "tanh", "none", "cosine, naive"),
    Noted("PRECODE, all layers matched", "4.5, 4.5 dB", "unbalanced", "precode()", "cosine, naive"),
    Noted("the same, our attack (tensors balanced)", "–", "pictures", "precode()", "cosine, naive"),
    Noted(
        "PRECODE, informed (notes: decoder ignored; here: noise searched)",
        "29.0, 34.2 dB",
        "pictures",
        "precode()",
        "cosine, informed",
    ),
    Noted("PPP 0.1 rms, informed", "29.5, 33.4 dB", "pictures", _PPP.format("0.1"), "cosine, informed"),
    Noted("PPP 1 rms, informed", "25.7, 26.1 dB", "pictures", _PPP.format("1.0"), "cosine, informed"),
    Noted("PPP 10 rms, informed", "11.6, 10.7 dB", "pictures", _PPP.format("10.0"), "cosine, informed"),
    Noted("Refiner (β = 1), attack to the true picture", "6.9 dB", "pictures", "refiner()", "L2, naive"),
    Noted("Refiner, cosine rank", "1 in 6 of 6", "rank", "refiner()", "cosine, naive"),
    Noted(
        "Learning to Obscure, attack to the true picture",
        "below 12 dB (demanded)",
        "pictures",
        "learning_to_obscure()",
        "L2, naive",
    ),
)


ELSEWHERE = (
    ("AdaDefense: within 1e-5 of 1e-3 sign g at first; clients apart", "tests/defenses/test_ada_defense.py"),
    ("AdaDefense: rows, rank 11 → 64, second release", "benchmarks/results/defenses/small_tests.md"),
    ("I2F: predicted over measured movement", "tests/theory/error/test_influence.py"),
    ("Fed-CDP: ε .601, .659, and 1.22 where each tensor is clipped", "tests/privacy/accounting/test_accountant.py"),
    ("Fed-CDP: clip of each example, the schedule is used", "tests/defenses/test_fed_cdp.py"),
    ("Refiner: the table of β; Learning to Obscure; ATS; dropout", "benchmarks/results/defenses/image_defenses.md"),
    ("PRECODE: analytic first layer; token rows under pruning and noise", "benchmarks/results/defenses/small_tests.md"),
    ("traps of public code: CENSOR, OUTPOST, Soteria, DGC, QSGD", "tests/defenses/test_censor.py"),
    ("GradDefense: slices, noise, what of it can be told apart", "tests/defenses/test_grad_defense.py"),
    ("T1 changes the update, and is random where it must be", "tests/conformance/test_defense_kinds.py"),
    ("T2, T3, T6 naive and informed attacks, rank", "benchmarks/results/defenses/sweep.jsonl"),
    ("T4 utility on a fresh model", "benchmarks/results/defenses/sweep.jsonl"),
    ("T5 guarantee by the accountant, or none", "tests/conformance/test_certificates.py"),
    ("T7 clients' states do not mix", "tests/conformance/test_defense_kinds.py"),
    ("T8 PSNR of a known error", "tests/metrics/test_psnr.py"),
)
"""Tests of the notes that are no cell of the table, and the file that holds each."""
