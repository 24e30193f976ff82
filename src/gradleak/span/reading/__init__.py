"""The update and the adversary's view as observed layers: places in the model and the column spaces of what they read."""
