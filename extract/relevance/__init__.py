"""Relevance of image cells to phrases: maps that need the live model, so that they are computed while it runs."""
