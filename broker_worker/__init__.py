"""The Celery worker and beat: run the core's jobs on schedule and on request. Nothing is decided here."""
