"""A run as a page and as a table. A report is a pure function of the run folder; nothing imports it but the edges."""

from gradleak.report.page.page import build, write, write_bounds, write_training

__all__ = ["build", "write", "write_bounds", "write_training"]
