"""Real servers, repositories and models for the tests."""
