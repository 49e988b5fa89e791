"""What a step costs, counted: our step beside its peers, inference, the loader, and a GPU."""
