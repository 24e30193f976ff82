"""What the gradients of token table, position table and head tell."""
