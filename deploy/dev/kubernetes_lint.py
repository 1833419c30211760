"""`python -m deploy.dev.kubernetes_lint`: check every object under `deploy/kubernetes` against the schema of its kind.

kubernetes-validate has the schemas of Kubernetes' own kinds; `custom-kinds.yaml` has those of all others. An object
whose kind has no schema is a fault.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate  # type: ignore[import-untyped] # it ships no types
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

_MANIFESTS = ROOT / "deploy" / "kubernetes"
_CUSTOM_FILE = Path(__file__).with_name("custom-kinds.yaml")
_CUSTOM: dict[str, Any] = yaml.safe_load(_CUSTOM_FILE.read_text())


def main(directory: Path = _MANIFESTS) -> int:
    """Print each fault with its file, then the totals; return the exit code."""
    objects = [
        (path, each) for path in sorted(directory.rglob("*.yaml")) for each in yaml.safe_load_all(path.read_text())
    ]
    faults = [f"{path.relative_to(directory)}: {fault}" for path, each in objects for fault in find_faults(each)]
    for fault in faults:
        print(fault)
    custom = sorted({each["kind"] for _, each in objects if _name_of(each) in _CUSTOM})
    print(
        f"kubernetes: {len(objects)} objects checked, {len(faults)} faults found; "
        f"{', '.join(custom)} by {_CUSTOM_FILE.relative_to(ROOT)}, the others by kubernetes-validate"
    )
    return 1 if faults else 0


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
