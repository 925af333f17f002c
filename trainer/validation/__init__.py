"""Held-out numbers while a network trains: the samples, the network as it would ship, the measures, and the sharing.

`validation.validation_of` gives what the loop asks; it changes neither weights nor random states.
"""
