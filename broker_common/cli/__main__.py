"""`python -m broker_common.cli`, where the command itself is not installed."""

from broker_common.cli.commands import main

main(prog_name="broker")
