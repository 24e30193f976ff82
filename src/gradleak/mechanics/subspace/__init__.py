"""The column space of a gradient, the noise in it, and the law of what does not lie in it."""
