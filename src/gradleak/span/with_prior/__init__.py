"""Records that are likeliest under update and language model together, and what each of the two contributed."""
