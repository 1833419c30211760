"""The real allocation code in simulated time: hundreds of processes on a DynamoDB with the limits that AWS states."""
