"""The nouns: batch, update, channel, knowledge, observation, attack, metric, record. Knows no method by name."""
