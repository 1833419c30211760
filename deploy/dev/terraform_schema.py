"""`python -m deploy.dev.terraform_schema FILE`: write `terraform_schema.json`, for the stand-in of the AWS provider.

FILE is the wheel of the Python package `cdktf-cdktf-provider-aws` (`pip download --no-deps`). Its code was generated
from the schemas of the AWS provider. It says of each attribute and block: its name, its type, whether it is required,
and whether it can be set at all. Run this for a new type of resource in `deploy/terraform` (add it to `RESOURCES`), or
for a newer provider.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).with_name("terraform_schema.json")
RESOURCES = (
    "appautoscaling_policy",
    "appautoscaling_target",
    "cloudwatch_log_group",
    "cloudwatch_log_metric_filter",
    "cloudwatch_metric_alarm",
    "dynamodb_table",
    "ecs_service",
    "ecs_task_definition",
    "iam_policy",
    "iam_role",
    "iam_role_policy",
    "iam_role_policy_attachment",
)
_TYPES: dict[str, Any] = {
    "string": "string",
    "number": "number",
    "boolean": "bool",
    "stringList": ["list", "string"],
    "numberList": ["list", "number"],
    "stringMap": ["map", "string"],
}
_ENTRY = re.compile(
    r'\n\s+(\w+): \{\n\s+value: [^\n]*,\n\s+isBlock: (true|false),\n\s+type: "(\w+)",\n\s+storageClassType: "(\w+)",\n'
)


def main() -> int:
    """Write the file; return the exit code."""
    package = Path(sys.argv[1])
    sources = _sources(package)
    schemas = {f"aws_{name}": _Resource(*sources[name]).schema(_title(name)) for name in RESOURCES}
    (version,) = set(re.findall(r"hashicorp/aws/([0-9.]+)/docs", sources[RESOURCES[0]][1]))
    made = {"from": package.name, "provider": version, "resources": schemas}
    OUTPUT.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    return 0


def _sources(package: Path) -> dict[str, tuple[str, str]]:
    """Return the code and the declarations of each resource."""
    with zipfile.ZipFile(package) as wheel:
        (name,) = (each for each in wheel.namelist() if each.endswith(".jsii.tgz"))
        content = wheel.read(name)
    wanted = {f"package/lib/{name.replace('_', '-')}/index.{kind}" for name in RESOURCES for kind in ("js", "d.ts")}
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.name in wanted and (file := archive.extractfile(member)):
                found[member.name] = file.read().decode()
    directories = {name: f"package/lib/{name.replace('_', '-')}" for name in RESOURCES}
    return {name: (found[f"{each}/index.js"], found[f"{each}/index.d.ts"]) for name, each in directories.items()}


class _Resource:
    """The schema of one resource, read from its code and its declarations."""

    def __init__(self, code: str, declarations: str) -> None:
        self._code = code
        self._declarations = declarations
        self._blocks = {
            name[:1].upper() + name[1:]: body
            for name, body in re.findall(r"function (\w+)ToHclTerraform\(struct\) \{(.*?)\n\}", code, re.DOTALL)
        }
        self._fields = {
            name: {field: not optional for field, optional in re.findall(r"readonly (\w+)(\??):", body)}
            for name, body in re.findall(
                r"export interface (\w+)(?: extends [\w.]+)? \{(.*?)\n\}", declarations, re.DOTALL
            )
        }

    def schema(self, title: str) -> dict[str, Any]:
        """Return the schema of the resource whose class is named `title`."""
        (body,) = re.findall(r"synthesizeHclAttributes\(\) \{(.*?)\n    \}", self._code, re.DOTALL)
        schema = self._block(body, self._fields[f"{title}Config"])
        (declared,) = re.findall(rf"export declare class {title} extends .*?\n\}}", self._declarations, re.DOTALL)
        can_be_set = set(re.findall(r"    set (\w+)\(", declared))
        for name, kind in re.findall(r"    get (\w+)\(\): (string|number|boolean);", declared):
            if name not in can_be_set and not name.endswith("Input"):
                schema["attributes"].setdefault(_snake(name), {"type": _TYPES[kind], "computed": True})
        schema["attributes"]["id"]["computed"] = True
        return schema

    def _block(self, body: str, fields: dict[str, bool]) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        for name, is_block, kind, stored in _ENTRY.findall(body):
            is_required = fields.get(_camel(name), False)
            if is_block == "true":
                of = stored.removesuffix("List") if stored not in self._blocks else stored
                nesting = "single" if kind == "struct" else kind
                blocks[name] = {"nesting": nesting, "block": self._block(self._blocks[of], self._fields[of])}
                if is_required:
                    blocks[name]["min_items"] = 1
            else:
                of_type = _TYPES[stored]
                attributes[name] = {
                    "type": ["set", of_type[1]] if kind == "set" else of_type,
                    "required" if is_required else "optional": True,
                }
        return {"attributes": attributes, "blocks": blocks}


def _title(name: str) -> str:
    return "".join(word.title() for word in name.split("_"))


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda letter: "_" + letter[1].lower(), name)


if __name__ == "__main__":
    sys.exit(main())
