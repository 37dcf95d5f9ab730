"""From a net of fixed precision to files that are smaller, load and run."""
