"""The jobs on the largest pools: their calls of DynamoDB, Redis and the provider are counted, never timed."""
