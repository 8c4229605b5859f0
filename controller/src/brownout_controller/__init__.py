"""What schedules, watches, records, judges and shows."""

__version__ = "0.1.0"
