"""The entityq command line."""
