"""How much noise a stated goal takes."""
