"""Published numbers, submissions, their verification and the boards. No torch."""
