"""Attacks: callables and tensors in, adversarial images out; no attack knows a task."""
