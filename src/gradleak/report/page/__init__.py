"""The run as one offline HTML file: sections, charts as inline SVG, evidence redacted by default."""
