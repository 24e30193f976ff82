"""A run and a prediction as text."""
