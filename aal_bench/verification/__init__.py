"""Levels 2 to 4 of an entry: its model rebuilt, replayed, attacked again, challenged."""

from aal_bench.verification.levels import Options as Options
from aal_bench.verification.levels import verify_entry as verify_entry
