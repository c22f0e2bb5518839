"""One HTML page about a run, or about several side by side: config, training, samples and measures."""
