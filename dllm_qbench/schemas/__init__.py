"""JSON Schemas of the files that this project stores."""
