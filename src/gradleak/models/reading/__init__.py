"""From a module to its anatomy, by data flow and never by name."""
