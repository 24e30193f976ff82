"""Why: what a channel guarantees against every adversary, as a computation and never as a label. Reads stages only
through the methods of ``core.stage.Stage``; must not know any concrete defense, attack or metric.
"""
