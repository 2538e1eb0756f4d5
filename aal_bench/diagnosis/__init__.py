"""Six hypotheses about the numbers that the AAL paper prints, tested on a run of one's own.

The paper is arXiv 2112.13989. `conduct` goes from a run's folder to ``diagnosis.json``: `measure`
attacks the network, `hypotheses` judges what was measured, `show` prints it.
"""
