"""The flags of each verb, without what takes long to import."""
