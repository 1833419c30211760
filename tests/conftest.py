"""Fixtures for every test: the real servers (see `backends`), started only when a test asks for one."""

from tests.backends import aws_environment, dynamodb_local_url, ministack_url, redis_url

__all__ = ["aws_environment", "dynamodb_local_url", "ministack_url", "redis_url"]
