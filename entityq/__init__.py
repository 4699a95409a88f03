"""Durable entities for Python."""
