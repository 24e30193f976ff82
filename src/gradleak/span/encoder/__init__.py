"""Records of bidirectional models, whole sentences at once."""
