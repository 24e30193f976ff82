"""Everything that can be said of a model and a batch size before an attack, in one object."""
