"""What noise leaves visible, and how large the noise of a given update is."""
