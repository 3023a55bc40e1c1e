"""What pages promise: for each page the beginning of each paragraph, item or row, and the tests that prove it."""
