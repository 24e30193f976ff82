"""Softmax attention and its gradient in closed form."""
