"""What a run's files tell: reports."""
