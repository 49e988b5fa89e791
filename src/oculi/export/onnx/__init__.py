"""A merged model as graphs for onnxruntime; ``oculi.edge`` runs what this writes."""
