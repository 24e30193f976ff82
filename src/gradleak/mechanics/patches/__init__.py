"""What the gradients of a vision transformer's entrance say about the patches of its pictures."""
