"""Heads: what turns a support set into a classifier of queries."""
