"""Adaptive attacks: on networks that declare a gate or auxiliary heads, and on random ones."""
