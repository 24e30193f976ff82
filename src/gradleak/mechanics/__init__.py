"""Pure mathematics that at least two of attacks, defenses, metrics, theory and privacy need."""
