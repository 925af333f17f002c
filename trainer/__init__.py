"""Trains, evaluates and packages networks; imports the core's own network: what is trained is what runs."""
