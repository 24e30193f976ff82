"""The only place where truth meets reconstruction: pairing, scores, intervals, baselines, flags."""
