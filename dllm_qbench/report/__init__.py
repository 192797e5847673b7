"""The HTML report of a run: its data, its charts and its page, made without measuring anything again."""
