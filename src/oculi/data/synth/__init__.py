"""`oculi data synthesize`: new samples for pictures, written by a model behind an endpoint."""
