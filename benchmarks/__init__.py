"""Scripts that print every number of the README and the docs; see README.md beside this file. Not part of the wheel."""
