"""Streams, reply and control channels."""
