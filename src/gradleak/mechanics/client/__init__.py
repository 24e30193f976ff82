"""What a client computes from a batch: its update, differentiable, per example, clipped, in factors."""
