"""The small cases of the contract, in every order of their store and provider calls, not in a sample of them."""
