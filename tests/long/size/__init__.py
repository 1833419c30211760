"""The jobs on pools as large as they get: what they ask of DynamoDB, Redis and the provider is counted, never timed."""
