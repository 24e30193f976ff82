"""What the layers of a model read when chosen tokens are put in."""
