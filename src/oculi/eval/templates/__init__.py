"""How a run's report looks: what it shows, its curves and its page. Nothing here opens a file."""
