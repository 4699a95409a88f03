"""Safeguards, each switched off in a copy of the sources, each noticed by a test."""
