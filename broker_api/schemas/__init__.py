"""The JSON shapes of requests and answers, one module a resource. OpenAPI's schemas are made from these classes."""
