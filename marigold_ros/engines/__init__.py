"""What runs the network: the same call and, within a tested bound, the same answer on every device."""
