"""Sorting networks on rows."""
