"""How much noise a stated target takes."""
