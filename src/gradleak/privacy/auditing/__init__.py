"""Is a claim false? Lower bounds on ε from what an audit saw."""
