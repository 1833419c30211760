"""`python -m deploy.dev.terraform_provider`: stand in for Terraform's AWS provider, so that Terraform can plan.

It knows the schemas of `terraform_schema.json`, by which Terraform checks a configuration, and nothing of AWS. In a
plan, what AWS would choose (an ARN) is made of the resource's name. It prints the value for TF_REATTACH_PROVIDERS, and
ends when its input does.

Source: "Terraform plugin protocol", version 5.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped] # it ships no types
import msgpack  # type: ignore[import-untyped] # it ships no types

if TYPE_CHECKING:
    from collections.abc import Mapping

protocol: Any = grpc.protos("deploy/dev/terraform_provider.proto")
_SCHEMAS: dict[str, Any] = json.loads(Path(__file__).with_name("terraform_schema.json").read_text())["resources"]
_NESTINGS = {"single": 1, "list": 2, "set": 3, "map": 4}
_NAMES = ("name", "family", "alarm_name", "resource_id")


def main() -> int:
    """Serve until the input ends; return the exit code."""
    calls = {
        "GetSchema": (protocol.Nothing, _schemas),
        "PrepareProviderConfig": (protocol.Configuration, lambda request, _: request),
        "ValidateResourceTypeConfig": (protocol.Nothing, _nothing),
        "Configure": (protocol.Nothing, _nothing),
        "PlanResourceChange": (protocol.PlanRequest, _plan),
        "Stop": (protocol.Nothing, _nothing),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, (request, answer) in calls.items()
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tfplugin5.Provider", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    address = {"Network": "tcp", "String": f"127.0.0.1:{port}"}
    attached = {"Protocol": "grpc", "ProtocolVersion": 5, "Pid": os.getpid(), "Test": True, "Addr": address}
    print(json.dumps({"hashicorp/aws": attached}), flush=True)
    sys.stdin.read()
    server.stop(None)
    return 0


def _schemas(_request: Any, _context: Any) -> Any:  # noqa: ANN401 - protobuf makes the classes at run time
    region = protocol.Attribute(name="region", type=b'"string"', optional=True)
    return protocol.Schemas(
        provider=protocol.Schema(block=protocol.Block(attributes=[region])),
        resource_schemas={name: protocol.Schema(block=_block(block)) for name, block in _SCHEMAS.items()},
    )


def _block(block: Mapping[str, Any]) -> Any:  # noqa: ANN401 - protobuf makes the classes at run time
    return protocol.Block(
        attributes=[
            protocol.Attribute(name=name, **(attribute | {"type": json.dumps(attribute["type"]).encode()}))
            for name, attribute in block["attributes"].items()
        ],
        block_types=[
            protocol.NestedBlock(
                type_name=name,
                block=_block(nested["block"]),
                nesting=_NESTINGS[nested["nesting"]],
                min_items=nested.get("min_items", 0),
            )
            for name, nested in block["blocks"].items()
        ],
    )


def _plan(request: Any, _context: Any) -> Any:  # noqa: ANN401 - protobuf makes the classes at run time
    state = msgpack.unpackb(request.proposed_new_state.msgpack)
    name = next((state[each] for each in _NAMES if state.get(each)), "")
    for attribute, schema in _SCHEMAS[request.type_name]["attributes"].items():
        if schema.get("computed") and schema["type"] == "string" and state[attribute] is None:
            state[attribute] = f"{request.type_name}/{name}/{attribute}"
    # Without legacy_type_system Terraform asks for more care with defaults than a stand-in needs.
    planned = protocol.Value(msgpack=msgpack.packb(state))
    return protocol.PlanResponse(planned_state=planned, legacy_type_system=True)


def _nothing(_request: Any, _context: Any) -> Any:  # noqa: ANN401 - protobuf makes the classes at run time
    return protocol.Nothing()


if __name__ == "__main__":
    sys.exit(main())
