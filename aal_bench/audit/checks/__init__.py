"""The checks, one idea in each file; `examine.CHECKERS` says which function is which number."""
