"""The HTML report of a run: its data (`data`), its charts and its page, made from outcome files without measuring anything again."""
