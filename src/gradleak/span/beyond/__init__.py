"""Batches that hold more tokens than the model has hidden dimensions."""
