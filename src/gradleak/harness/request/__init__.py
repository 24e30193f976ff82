"""What was asked for, checked before any work: methods by name, data, plan, everything that can be wrong."""
