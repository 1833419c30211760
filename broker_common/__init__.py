"""What the API and the workers share: the rules (core), the technologies (adapters), settings and wiring."""
