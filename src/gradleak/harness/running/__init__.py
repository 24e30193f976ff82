"""Cells to records: one cell, the loop over them, the run folder and the machine that it ran on."""
