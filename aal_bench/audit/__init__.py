"""The audit: is the number real?

`table` says what is checked and where the thresholds are, `subject` what is audited, `bank` keeps
every adversarial and gradient so that the checks share them, `checks` judges, one idea in each
file, and `examine` runs them all into the `record`.
"""
