"""Tests of the broker; see the folders for their kinds."""
