"""The small cases of docs/contract.md, in every order of their store and provider calls, not in a sample of them."""
