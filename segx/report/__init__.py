"""Results -> one self-contained HTML page: a decision, charts, tables, pictures, the whole environment."""
