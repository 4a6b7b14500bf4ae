"""What runs a rule's program over all parameters at once."""
