"""The half-life, chosen by the user's own evaluation: candidates, their metrics, and the winner published."""
