"""The chain of bounds on a model: what the best possible attacker does beside what measured attacks do."""
