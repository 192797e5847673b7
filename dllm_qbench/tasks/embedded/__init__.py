"""The embedded models' three families as lm-eval tasks."""
