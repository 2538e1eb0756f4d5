"""aal-bench: settle adversarial-training claims with the field's own toolkits."""

__version__ = "0.1.0"
