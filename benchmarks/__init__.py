"""What a private step costs, beside the plain step and beside others; and which networks work."""
