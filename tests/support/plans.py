"""Plans of audits that nobody runs."""

from __future__ import annotations

from gradleak.harness.request.plan import Call, Plan


def plan(**changes: object) -> Plan:
    """Two attacks, without a defense and behind clip and noise, with ``changes``."""
    plain: dict[str, object] = {
        "model": "random:bert",
        "share": {"share": "gradient"},
        "threat": "honest_server",
        "attacks": (Call(type="tag"), Call(type="dlg", args={"iterations": 3})),
        "defenses": (
            (),
            (Call(type="clip", args={"max_norm": 1.0}), Call(type="gaussian", args={"noise_multiplier": 0.5})),
        ),
        "repeats": 2,
    }
    return Plan(**(plain | changes))
