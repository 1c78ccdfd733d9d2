"""Exact medians, clipping and means of many frames, tile by tile."""
