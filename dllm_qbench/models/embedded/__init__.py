"""The embedded models: what they know, how they were trained, and the checkpoints themselves."""
