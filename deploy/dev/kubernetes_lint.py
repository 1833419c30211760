"""`python -m deploy.dev.kubernetes_lint`: check every object under `deploy/kubernetes` against the schema of its kind.

First each file as it is written, then what `kubectl kustomize` makes of the base and of each overlay.
kubernetes-validate has the schemas of Kubernetes' own kinds; `custom-kinds.yaml` has those of all others. An object
whose kind has no schema is a fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate  # type: ignore[import-untyped] # it ships no types
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFESTS = ROOT / "deploy" / "kubernetes"
_CUSTOM_FILE = Path(__file__).with_name("custom-kinds.yaml")
_CUSTOM: dict[str, Any] = yaml.safe_load(_CUSTOM_FILE.read_text())


class Refused(Exception):
    """kubectl refuses a directory. The text is kubectl's."""


def main(directory: Path = MANIFESTS) -> int:
    """Print each fault with its file or overlay, then the totals; return the exit code."""
    objects = [
        (str(path.relative_to(directory)), each)
        for path in sorted(directory.rglob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text())
    ]
    faults = []
    if kubectl := find_kubectl():
        for path in sorted(directory.rglob("kustomization.yaml")):
            name = f"kubectl kustomize {path.parent.relative_to(directory)}"
            try:
                objects += [(name, each) for each in kustomize(kubectl, path.parent)]
            except Refused as error:
                faults.append(f"{name}: {error}")
    elif os.environ.get("CI") == "true":
        faults.append("kubectl is missing, and CI=true asks for it")
    else:
        print("kubernetes: kubectl is missing, so nothing is checked that it makes of the files")
    faults += [f"{name}: {fault}" for name, each in objects for fault in find_faults(each)]
    for fault in faults:
        print(fault)
    custom = sorted({each["kind"] for _, each in objects if _name_of(each) in _CUSTOM})
    print(
        f"kubernetes: {len(objects)} objects checked, {len(faults)} faults found; "
        f"{', '.join(custom)} by {_CUSTOM_FILE.relative_to(ROOT)}, the others by kubernetes-validate"
    )
    return 1 if faults else 0


def find_kubectl() -> str | None:
    """Return the path of kubectl: that of this environment, or another that is installed. None if there is none."""
    return shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def kustomize(kubectl: str, directory: Path) -> list[dict[str, Any]]:
    """Return the objects that kubectl makes of a base or an overlay. Raises `Refused`."""
    made = subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Refused(made.stderr.strip())
    return list(yaml.safe_load_all(made.stdout))


def find_faults(each: dict[str, Any]) -> Iterator[str]:
    """Yield each fault of an object by the schema of its kind."""
    what = f"{each['kind']} {each.get('metadata', {}).get('name', '')}".strip()
    if schema := _CUSTOM.get(_name_of(each)):
        for error in Draft202012Validator({"type": "object", "$defs": _CUSTOM["$defs"]} | schema).iter_errors(each):
            yield f"{what}: {error.json_path}: {error.message}"
        return
    try:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{what}: {error.json_path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"{what}: {_name_of(each)} has no schema. Write one in {_CUSTOM_FILE.relative_to(ROOT)}"


def _name_of(each: dict[str, Any]) -> str:
    return f"{each['apiVersion']}/{each['kind']}"


if __name__ == "__main__":
    sys.exit(main())
