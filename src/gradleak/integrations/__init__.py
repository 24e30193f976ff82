"""Edges to other libraries. Each module reads another library's objects into gradleak's own words; nobody inside imports them."""
