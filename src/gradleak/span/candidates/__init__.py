"""Which (token, position) pairs lie in the column space at the first attention."""
