"""What a bench records: types, reading and writing, provenance."""
