"""A run checked against a policy, for continuous integration."""
