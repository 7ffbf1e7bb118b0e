"""One policy a file; each wraps a Predictor and is one, and none knows another.

A policy changes when and how often a model is asked, never what it answers.
"""
