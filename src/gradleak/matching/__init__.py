"""The engine of gradient matching: objective × parametrization × optimizer × restarts, and the client replayed by the attacker.

Must not know any attack, defense or score.
"""
