"""How long a layer takes in a runtime, and the table of a net's layers."""
