"""Producers and runners as real processes under random faults; their history is checked afterwards."""
