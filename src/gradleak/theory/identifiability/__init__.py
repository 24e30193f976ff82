"""What the gradient determines in the absence of noise."""
