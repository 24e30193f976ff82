"""From a plan to ε(δ): events, loss distributions, closed forms."""
