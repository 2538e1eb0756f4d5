"""Images as they are fed: readers of the accepted layouts, splits, subsets and fingerprints."""
