"""How likely a noisy gradient makes a proposal: inputs, tokens, whole sets of records."""
