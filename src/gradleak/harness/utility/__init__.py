"""What a defense costs: short trainings, memory, the frontier over one knob."""
