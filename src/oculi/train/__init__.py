"""One loop, its optimizer, its checkpoints, and the run that strings stages together."""
