"""The best possible attacker under a mechanism: Bayes risk over candidates, error floors."""
