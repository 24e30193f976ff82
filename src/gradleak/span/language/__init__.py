"""Language models that tell how probable a text is before any update was seen."""
