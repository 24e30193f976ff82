"""From a training loop to what attacks read from its update; each script runs on a small random model and takes its place in `docs/capture.md`."""
