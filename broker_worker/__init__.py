"""The Celery worker and beat: they run the core's jobs on schedule and on request. The core makes all decisions."""
