"""The flags of the verbs that make or fetch data."""
