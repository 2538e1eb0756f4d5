"""The boards as a static site: pages that open from a folder, without a server. No torch."""
