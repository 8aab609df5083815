"""Attention as grounding: every layer and head scored as if its map of a phrase were the model's answer."""
