"""What clipping and noise cost a training run."""
