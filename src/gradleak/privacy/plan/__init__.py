"""A training plan: unit, sampling, mechanism, and who sees what of it."""
