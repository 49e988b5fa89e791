"""Scores of a checkpoint on a task: by free generation, with a blind score beside."""
