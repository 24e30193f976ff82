"""Joint searches where noise makes single tests fail."""
