"""What the scripts share: recording, comparing, drawing. No benchmark."""
