"""Training with perturbed gradients: smoothness and rates."""
