"""Hallucination: objects that a model speaks of and that its image does not show."""
