"""What a checkpoint's LLM is given of pictures, made visible: pictures restored from it alone."""
