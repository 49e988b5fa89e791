"""Cognition alignment (VLSA, section 3.2): questions about colours and codes, and their scores."""
