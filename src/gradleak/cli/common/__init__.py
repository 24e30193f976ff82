"""What the verbs share: options, output, progress."""
