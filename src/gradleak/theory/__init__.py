"""What can be said before, or without, an attack: conditions, bounds, forecasts. Attacks confirm, and
``tests/agreement`` holds the two to each other. One result, one file. Must not know any attack or defense.
"""
