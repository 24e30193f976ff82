"""What was found → labels and certificate → reconstruction with its status."""
