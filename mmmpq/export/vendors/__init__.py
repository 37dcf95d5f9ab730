"""Files from which the tools of vendors learn the widths, and the ranges, of a net."""
