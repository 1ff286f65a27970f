"""Polish: improve a trained dictionary by matching pursuit."""
