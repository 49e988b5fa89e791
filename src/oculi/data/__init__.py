"""Any format -> Sample -> lengths -> order -> packed Batch."""
