"""Tests of the rules and the small parts, without sockets."""
