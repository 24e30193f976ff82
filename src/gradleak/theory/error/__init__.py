"""How far a reconstruction must be from the truth."""
