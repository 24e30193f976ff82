"""One measure of leakage per module; the module's name is the metric's name. Must not know any attack."""
