"""A paper's claims at small scale: rules before the first run, verdicts after the last."""
