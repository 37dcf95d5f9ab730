"""Policies that a person or a measurement gives, to hold a search against."""
