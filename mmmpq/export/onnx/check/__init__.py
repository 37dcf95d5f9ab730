"""What a target makes of a net: in integers, in float, or not at all."""
