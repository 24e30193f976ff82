"""Records of causal models, prefix by prefix."""
