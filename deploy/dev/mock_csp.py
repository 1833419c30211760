"""A mock of the provider (the ENG CSP) for development and tests: the same API, with realistic accounts.

It keeps everything in memory and shares no code with the broker. Run it with `python deploy/dev/mock_csp.py`.

Environment: `MOCK_CSP_BIND` (127.0.0.1), `MOCK_CSP_PORT` (8090; 0 takes a free one), `MOCK_CSP_TOKEN`,
`MOCK_CSP_POOL` (active sandbox accounts, 50), `MOCK_CSP_OTHERS` (accounts of other kinds and states, 300),
`MOCK_CSP_SEED`, `MOCK_CSP_EMAIL` and `MOCK_CSP_PASSWORD` of the user who may sign in, and `MOCK_CSP_<SWITCH>` for every
switch.

Besides the provider's API:
- `GET /_mock/switches`; `PUT` sets some and resets all others, `PATCH` sets some;
- `GET`, `DELETE` `/_mock/deletes`: every delete call so far, and the highest number of calls at once;
- `GET`, `POST` `/_mock/accounts`, `DELETE /_mock/accounts/<csp_id>`;
- `GET /_mock/services`: the names of the services in each account, and every call about services so far; `DELETE`
  forgets both; `POST` adds services to an account: `{"id": "identity/accounts/<uuid>", "names": [...]}`.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from flask import Flask, Response, json, jsonify, request
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HOME = "home"
"""The account of the user who signs in. It has a service, which nobody asks to be removed."""
ACTIVE_SANDBOX = {"account_type": "sandbox", "state": "active"}
_CHOICES: Mapping[str, tuple[object, ...]] = {
    "drop_when": ("before", "after"),
    "delete_answer": (200, 202, 204, 404),
    "fail_status": (200, 202, *range(300, 600)),
    "paging": ("off", "offset", "link", "limit", "number"),
    "on_delete": ("reset", "remove"),
    "services_html": ("", "all", "sign_in", "switch", "list", "delete"),
}


class BadSwitchError(Exception):
    """A switch does not exist or cannot have a value; one line for each."""


@dataclass(frozen=True, kw_only=True)
class Switches:
    """The faults that the mock shows. A number whose name has `next` counts down."""

    delete_seconds: float = 1.0
    list_seconds: float = 0.0
    fail_next_deletes: int = 0
    fail_deletes_for_seconds: float = 0.0
    fail_next_lists: int = 0
    fail_status: int = 500
    """With 200 and 202 only the body has the error."""
    html_errors: bool = False
    drop_next_deletes: int = 0
    drop_next_lists: int = 0
    drop_when: str = "before"
    """Whether a dropped delete was applied: `before` says no, `after` says yes."""
    truncated_list: bool = False
    empty_list: bool = False
    shuffled_list: bool = False
    """Each answer, also each page, has its own order of the accounts."""
    malformed_account: bool = False
    delete_answer: int = 200
    unauthorized: bool = False
    redirect: bool = False
    login_page: bool = False
    """Answer every call with 200 and an HTML page, as a portal does after its session has ended."""
    paging: str = "off"
    """How a page names the next: by a `page` object (`offset`), `next` (`link`), `_offset` and `_limit`, `page`."""
    page_size: int = 100
    on_delete: str = "reset"
    sign_in_down: bool = False
    """Answer each sign-in with 503."""
    refuse_switch: bool = False
    """Answer each switch to an account with 403."""
    same_token: bool = False
    """Answer a switch to an account with the token of before, and do not switch."""
    stuck_service: str = ""
    """Answer the delete of a service with this name with 500."""
    services_html: str = ""
    """Answer this call about services with 200 and an HTML page: sign_in, switch, list or delete; all: each of them."""
    service_seconds: float = 0.0
    """How long each call about services takes."""
    hold_deletes_until: int = 0
    """A delete ends only while so many run at once (or as many as there are accounts); the oldest ends first."""

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return these switches with `changes`. Raises `BadSwitchError` with all problems."""
        kinds = {item.name: type(item.default) for item in fields(self)}
        problems: list[str] = []
        taken: dict[str, Any] = {}
        for name, value in changes.items():
            kind = kinds.get(name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
            if kind is None:
                problems.append(f"{name}: no such switch")
            elif name in _CHOICES and value not in _CHOICES[name]:
                problems.append(f"{name}: must be one of {', '.join(map(str, _CHOICES[name]))}")
            elif kind is float and is_number:
                taken[name] = float(value)
            elif type(value) is not kind or (kind is int and (not is_number or (name == "page_size" and not value))):
                problems.append(f"{name}: must be a {kind.__name__} in range")
            else:
                taken[name] = value
        if problems:
            raise BadSwitchError("\n".join(problems))
        return replace(self, **taken)


@dataclass(kw_only=True)
class Delete:
    """One delete call. `answer` is the status, or None while it runs or if the connection was dropped.

    `held_with`: the number of deletes, this one included, that waited when it was let go.
    """

    external_id: str
    csp_id: int | None
    started_at: float
    ended_at: float | None = None
    answer: int | None = None
    applied: bool = False
    held_with: int | None = None


@dataclass(kw_only=True)
class ServiceCall:
    """One call about services: `step` is sign_in, switch, list or delete. `answer` is the status."""

    step: str
    external_id: str | None
    name: str | None
    answer: int


@dataclass(kw_only=True)
class World:
    """All state. Every access holds `lock`."""

    initial: Switches
    token: str
    email: str
    password: str
    rng: random.Random
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    wiped_at: dict[str, float] = field(default_factory=dict)
    deletes: list[Delete] = field(default_factory=list)
    held: list[Delete] = field(default_factory=list)
    sessions: dict[str, str] = field(default_factory=dict)
    """The account that each token of a signed-in user works in, by its uuid; HOME after the sign-in."""
    services: dict[str, dict[str, str]] = field(default_factory=dict)
    """The names of the services in each account, by their ids. They outlast the wipe of the account."""
    service_calls: list[ServiceCall] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    fail_until: float = 0.0
    in_flight: int = 0
    highest_in_flight: int = 0
    last_csp_id: int = 2009520
    names: int = 0
    switches: Switches = field(init=False)

    def __post_init__(self) -> None:
        self.has_changed = threading.Condition(self.lock)
        self.add_services(HOME, ["the user's own"])
        self.set_switches(self.initial)

    def set_switches(self, switches: Switches) -> None:
        """Set all switches. `fail_deletes_for_seconds` counts from now."""
        self.switches = switches
        self.fail_until = time.monotonic() + switches.fail_deletes_for_seconds

    def add_account(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Add an account with the `given` fields and realistic values for the others."""
        self.last_csp_id += self.rng.randint(1, 7)
        self.names += 1
        series = "lab-expedition" if self.names % 5 == 0 else "lab-adventure"
        born = datetime(2025, 3, 27, 16, 53, 47, tzinfo=UTC) + timedelta(
            seconds=self.names * 3607, microseconds=self.rng.randrange(10**6)
        )
        account = {
            **ACTIVE_SANDBOX,
            "id": f"identity/accounts/{uuid.UUID(int=self.rng.getrandbits(128), version=4)}",
            "name": f"{series}-{self.names:04d}",
            "csp_id": self.last_csp_id,
            "created_at": born.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "sfdc_account_id": f"001{self.rng.getrandbits(72):018x}"[:18].upper(),
            **given,
        }
        self.accounts[str(account["id"]).rpartition("/")[2]] = account
        return account

    def add_services(self, account: str, names: list[str]) -> None:
        """Add services to an account."""
        kept = self.services.setdefault(account, {})
        for name in names:
            kept[str(uuid.uuid4())] = name

    def open_session(self, account: str) -> str:
        """Return a new token that works in an account."""
        token = f"jwt-{uuid.uuid4()}"
        self.sessions[token] = account
        return token

    def use_up(self, name: str) -> bool:
        """Tell whether a switch that counts down still applies, and count down."""
        left = int(getattr(self.switches, name))
        if left:
            counted: dict[str, Any] = {name: left - 1}
            self.switches = replace(self.switches, **counted)
        return left > 0

    def wipe(self, account: str, entry: Delete) -> None:
        """Wipe an account when the switches let its delete end."""
        with self.lock:
            self.held.append(entry)
            self.has_changed.notify_all()
            self.has_changed.wait_for(lambda: self.may_go(entry))
            entry.held_with = len(self.held)
            self.held.remove(entry)
            entry.applied = True
            self.wiped_at[account] = time.time()
            if self.switches.on_delete == "remove":
                self.accounts.pop(account, None)
            self.has_changed.notify_all()

    def may_go(self, entry: Delete) -> bool:
        """Tell whether a waiting delete may end now."""
        until = self.switches.hold_deletes_until
        return not until or (self.held[0] is entry and len(self.held) >= min(until, len(self.accounts)))

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call of the provider's API while it runs."""
        with self.lock:
            self.in_flight += 1
            self.highest_in_flight = max(self.highest_in_flight, self.in_flight)
        try:
            yield
        finally:
            with self.lock:
                self.in_flight -= 1


def populate(world: World, *, pool: int, others: int) -> None:
    """Make the accounts in random order: `pool` active sandboxes, and `others` that the broker must ignore."""
    states = ("disabled", "pending", "suspended", "deleted")
    kinds = ("standard", "partner", "internal", "trial")
    makes: list[dict[str, str]] = [{} for _ in range(pool)]
    for number in range(others):
        if number % 3 == 0:
            makes.append({"state": world.rng.choice(states)})
        else:
            makes.append({"account_type": world.rng.choice(kinds), "state": world.rng.choice(("active", *states))})
    world.rng.shuffle(makes)
    for make in makes:
        world.add_account(make)


class ProviderApi:
    """The routes of the provider's API."""

    def __init__(self, world: World) -> None:
        self._world = world

    def list_accounts(self) -> Response:
        """List all accounts."""
        world = self._world
        with world.call():
            refusal = self._refuse()
            if refusal is not None:
                return refusal
            with world.lock:
                switches, accounts = world.switches, list(world.accounts.values())
                if switches.shuffled_list:
                    world.rng.shuffle(accounts)
                failing, dropped = world.use_up("fail_next_lists"), world.use_up("drop_next_lists")
            if dropped:
                return drop_connection()
            if failing:
                return fail(switches, switches.fail_status, "The accounts could not be listed.")
            time.sleep(switches.list_seconds)
            return answer_list(switches, accounts)

    def delete_account(self, account: str) -> Response:
        """Wipe an account."""
        with self._world.call():
            return self._refuse() or self._delete(account)

    def login(self) -> Response:
        """Show a portal's login page."""
        return login_page()

    def _refuse(self) -> Response | None:
        switches = self._world.switches
        if switches.redirect:
            return Response(status=302, headers={"Location": "/login"})
        if switches.login_page:
            return login_page()
        if switches.unauthorized or request.headers.get("Authorization") != f"Token {self._world.token}":
            return fail(switches, HTTPStatus.UNAUTHORIZED, "The token is missing or wrong.")
        return None

    def _delete(self, account: str) -> Response:
        world = self._world
        with world.lock:
            found, switches = world.accounts.get(account), world.switches
            entry = Delete(
                external_id=f"identity/accounts/{account}",
                csp_id=found["csp_id"] if found else None,
                started_at=time.time(),
            )
            world.deletes.append(entry)
            dropped = world.use_up("drop_next_deletes")
            failing = not dropped and (time.monotonic() < world.fail_until or world.use_up("fail_next_deletes"))
        missing = found is None or switches.delete_answer == HTTPStatus.NOT_FOUND
        if not failing and not missing and not (dropped and switches.drop_when == "before"):
            time.sleep(switches.delete_seconds)
            world.wipe(account, entry)
        with world.lock:
            entry.ended_at = time.time()
            if dropped:
                return drop_connection()
            if failing:
                entry.answer = switches.fail_status
                return fail(switches, entry.answer, "The account could not be deleted.")
            if missing:
                entry.answer = int(HTTPStatus.NOT_FOUND)
                return fail(switches, entry.answer, "Account not found.")
            entry.answer = switches.delete_answer
        return Response(
            "" if entry.answer == HTTPStatus.NO_CONTENT else "{}", entry.answer, content_type="application/json"
        )


class ServicesApi:
    """The routes of a signed-in user, who switches to an account and deletes services in it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def sign_in(self) -> Response:
        """Give a token to the user who may sign in."""
        given = request.get_json(silent=True)
        world = self._world
        is_user = given == {"email": world.email, "password": world.password}

        def answer() -> Response:
            if world.switches.sign_in_down:
                return fail(world.switches, 503, "Nobody can sign in.")
            if not is_user:
                return fail(world.switches, 401, f"Unknown user: {given}")  # some servers repeat what they were sent
            return jsonify(jwt=world.open_session(HOME))

        return self._answer("sign_in", None, None, answer)

    def switch(self) -> Response:
        """Give a token that works in another account."""
        given = request.get_json(silent=True)
        world = self._world
        external_id = str(given.get("id")) if isinstance(given, dict) else ""
        account = external_id.rpartition("/")[2]

        def answer() -> Response:
            if self._account() is None:
                return fail(world.switches, 401, "Sign in first.")
            if world.switches.refuse_switch or account not in world.accounts:
                return fail(world.switches, 403, "The user may not switch to this account.")
            return jsonify(jwt=self._token() if world.switches.same_token else world.open_session(account))

        return self._answer("switch", account, None, answer)

    def list_services(self) -> Response:
        """List the services in the account of the token."""
        world = self._world

        def answer() -> Response:
            account = self._account()
            if account is None:
                return fail(world.switches, 401, "Sign in first.")
            kept = world.services.get(account, {})
            results = [{"id": f"universalinfra/universalservices/{key}", "name": name} for key, name in kept.items()]
            return jsonify(results=results)

        return self._answer("list", self._account(), None, answer)

    def delete_service(self, service: str) -> Response:
        """Delete a service in the account of the token."""
        world = self._world
        kept = world.services.get(self._account() or "", {})
        name = kept.get(service)

        def answer() -> Response:
            if self._account() is None:
                return fail(world.switches, 401, "Sign in first.")
            if name is None:
                return fail(world.switches, 404, "Service not found.")
            if name == world.switches.stuck_service:
                return fail(world.switches, 500, "The service could not be deleted.")
            del kept[service]
            return Response(status=204)

        return self._answer("delete", self._account(), name, answer)

    def _answer(self, step: str, account: str | None, name: str | None, answer: Callable[[], Response]) -> Response:
        world = self._world
        with world.call():
            time.sleep(world.switches.service_seconds)
            with world.lock:
                is_html = world.switches.services_html in {"all", step}
                answered = login_page() if is_html else answer()
                world.service_calls.append(
                    ServiceCall(step=step, external_id=account, name=name, answer=answered.status_code)
                )
                return answered

    def _token(self) -> str:
        return request.headers.get("Authorization", "").removeprefix("Bearer ")

    def _account(self) -> str | None:
        return self._world.sessions.get(self._token())


class ControlApi:
    """The routes for tests and developers: switches, log of deletes, accounts, services."""

    def __init__(self, world: World) -> None:
        self._world = world

    def switches(self) -> tuple[dict[str, Any], int]:
        """Show the switches, or set some of them."""
        world = self._world
        with world.lock:
            if request.method != "GET":
                try:
                    changes = json_object()
                    start = world.initial if request.method == "PUT" else world.switches
                    world.set_switches(start.changed(changes))
                    world.has_changed.notify_all()
                except BadSwitchError as error:
                    return {"error": str(error)}, 400
            return asdict(world.switches), 200

    def deletes(self) -> dict[str, Any]:
        """Show the log of deletes; DELETE empties it."""
        world = self._world
        with world.lock:
            if request.method == "DELETE":
                world.deletes.clear()
                world.highest_in_flight = world.in_flight
            return {
                "deletes": [asdict(entry) for entry in world.deletes],
                "in_flight": world.in_flight,
                "highest_in_flight": world.highest_in_flight,
            }

    def services(self) -> tuple[dict[str, Any], int]:
        """Show the services and the calls about them, forget both, or add services to an account."""
        world = self._world
        with world.lock:
            if request.method == "POST":
                try:
                    given = json_object()
                except BadSwitchError as error:
                    return {"error": str(error)}, 400
                world.add_services(str(given["id"]).rpartition("/")[2], list(given["names"]))
            elif request.method == "DELETE":
                world.service_calls.clear()
                world.services = {HOME: world.services[HOME]}
            return {
                "services": {account: list(kept.values()) for account, kept in world.services.items()},
                "calls": [asdict(call) for call in world.service_calls],
            }, 200

    def accounts(self) -> dict[str, Any]:
        """Show all accounts, each with the time of its last wipe."""
        world = self._world
        with world.lock:
            return {
                "accounts": [
                    {**account, "wiped_at": world.wiped_at.get(key)} for key, account in world.accounts.items()
                ]
            }

    def add_account(self) -> tuple[dict[str, Any], int]:
        """Add an account with the given fields."""
        try:
            given = json_object()
        except BadSwitchError as error:
            return {"error": str(error)}, 400
        with self._world.lock:
            return self._world.add_account(given), 201

    def remove_account(self, csp_id: str) -> tuple[dict[str, Any], int]:
        """Remove an account without a delete call."""
        with self._world.lock:
            accounts = self._world.accounts
            keys = [key for key, account in accounts.items() if str(account["csp_id"]) == csp_id]
            for key in keys:
                del accounts[key]
            self._world.has_changed.notify_all()
        return {"removed": len(keys)}, 200 if keys else 404


def create_app(world: World) -> Flask:
    """Make the WSGI application."""
    app = Flask("mock_csp")
    provider, services, control = ProviderApi(world), ServicesApi(world), ControlApi(world)
    app.get("/current_user/accounts")(provider.list_accounts)
    app.delete("/sandbox/accounts/<account>")(provider.delete_account)
    app.get("/login")(provider.login)
    app.post("/v2/session/users/sign_in")(services.sign_in)
    app.post("/v2/session/account_switch")(services.switch)
    app.get("/api/universalinfra/v1/universalservices")(services.list_services)
    app.delete("/api/universalinfra/v1/universalservices/<service>")(services.delete_service)
    app.route("/_mock/switches", methods=["GET", "PUT", "PATCH"])(control.switches)
    app.route("/_mock/deletes", methods=["GET", "DELETE"])(control.deletes)
    app.route("/_mock/services", methods=["GET", "POST", "DELETE"])(control.services)
    app.get("/_mock/accounts")(control.accounts)
    app.post("/_mock/accounts")(control.add_account)
    app.delete("/_mock/accounts/<csp_id>")(control.remove_account)
    return app


def json_object() -> dict[str, Any]:
    """Return the request's body. Raises `BadSwitchError` if it is not a JSON object."""
    given = request.get_json(silent=True)
    if not isinstance(given, dict):
        raise BadSwitchError("the body must be a JSON object")
    return given


def fail(switches: Switches, status: int, message: str) -> Response:
    """Answer with an error, as JSON or as an HTML page."""
    if switches.html_errors:
        page = f"<html><head><title>{int(status)}</title></head><body><h1>{message}</h1></body></html>"
        return Response(page, int(status), content_type="text/html")
    body = json.dumps({"error": [{"message": message}]})
    return Response(body, int(status), content_type="application/json")


def login_page() -> Response:
    """Answer with a portal's login page."""
    page = "<!DOCTYPE html>\n<html><body><form>Sign in</form></body></html>"
    return Response(page, content_type="text/html")


def drop_connection() -> Response:
    """Close the connection, so that the answer does not arrive."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    return Response(status=500)


def answer_list(switches: Switches, accounts: list[dict[str, Any]]) -> Response:
    """Answer with the list or the requested page of it, with the faults of the switches."""
    if switches.empty_list:
        accounts = []
    if switches.malformed_account and accounts:
        accounts = [{**accounts[0], **ACTIVE_SANDBOX, "id": None, "name": 7}, *accounts[1:]]
    answer = page_of(switches, accounts)
    text = json.dumps(answer)
    if switches.truncated_list:
        text = text[: len(text) // 2]
    return Response(text, content_type="application/json")


def page_of(switches: Switches, accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the requested page, with the position of the next."""
    if switches.paging == "off":
        return {"results": accounts}
    size, count, asked = switches.page_size, len(accounts), request.args
    size = asked.get("_limit", size, type=int)
    number = asked.get("page", 1, type=int)
    start = (number - 1) * size if "page" in asked else asked.get("_offset", 0, type=int)
    end = start + size
    results, has_more = accounts[start:end], end < count
    if switches.paging == "offset":
        paging: dict[str, Any] = {"page": {"offset": end if has_more else None, "size": count}}
    elif switches.paging == "link":
        paging = {"next": f"/current_user/accounts?_offset={end}" if has_more else None}
    elif switches.paging == "limit":
        paging = {"_offset": start, "_limit": size}
    else:
        paging = {"page": number, "total": count}
    return {"results": results, **paging}


class Handler(WSGIRequestHandler):
    """Speaks HTTP/1.1 and logs one short line for each request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print method, path without its query, and status."""
        del size
        print(f"mock-csp {self.command} {self.path.partition('?')[0]} {int(code)}", flush=True)


def read_world(environ: Mapping[str, str]) -> tuple[World, tuple[str, int]]:
    """Return the world and the address that the environment sets. Raises `BadSwitchError`."""
    given = {name: value.strip() for name, value in environ.items() if name.startswith("MOCK_CSP_") and value.strip()}
    numbers, problems = {"PORT": 8090, "POOL": 50, "OTHERS": 300, "SEED": 1}, []
    for name in numbers:
        value = given.pop(f"MOCK_CSP_{name}", "")
        if value.isascii() and value.isdigit():
            numbers[name] = int(value)
        elif value:
            problems.append(f"MOCK_CSP_{name}: must be a whole number")
    bind = given.pop("MOCK_CSP_BIND", "127.0.0.1")
    token = given.pop("MOCK_CSP_TOKEN", "csp_token_123")
    email = given.pop("MOCK_CSP_EMAIL", "cleaner@example.com")
    password = given.pop("MOCK_CSP_PASSWORD", "services_password_123")
    changes = {}
    for name, value in given.items():
        try:
            changes[name.removeprefix("MOCK_CSP_").lower()] = json.loads(value)
        except ValueError:
            changes[name.removeprefix("MOCK_CSP_").lower()] = value
    try:
        switches = Switches().changed(changes)
    except BadSwitchError as error:
        problems += [f"MOCK_CSP_{line[0].upper()}{line[1]}" for line in split_names(str(error))]
    if problems:
        raise BadSwitchError("\n".join(problems))
    world = World(initial=switches, token=token, email=email, password=password, rng=random.Random(numbers["SEED"]))
    populate(world, pool=numbers["POOL"], others=numbers["OTHERS"])
    return world, (bind, numbers["PORT"])


def split_names(text: str) -> list[tuple[str, str]]:
    """Split lines of `name: problem` into the name and the rest."""
    return [(line.partition(":")[0], line[line.index(":") :]) for line in text.splitlines()]


def main() -> int:
    """Serve until SIGTERM or SIGINT, which cut off running calls."""
    try:
        world, address = read_world(os.environ)
        # The queue has room for a burst of several hundred new connections.
        listener = socket.create_server(address, backlog=1024)
    except BadSwitchError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"mock-csp: cannot listen: {error.strerror}. Change MOCK_CSP_BIND or MOCK_CSP_PORT", file=sys.stderr)
        return 1
    with listener:
        return serve(world, listener)


def serve(world: World, listener: socket.socket) -> int:
    """Serve until a signal stops it."""
    server = ThreadedWSGIServer(listener.getsockname()[0], 0, create_app(world), handler=Handler, fd=listener.fileno())

    def stop(*_: object) -> None:
        # In a thread: shutdown() waits for the loop that this handler interrupts.
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    active = sum(ACTIVE_SANDBOX.items() <= account.items() for account in world.accounts.values())
    url = f"http://{server.host}:{server.port}"
    print(f"mock-csp ready on {url}: {active} active sandbox accounts of {len(world.accounts)}", flush=True)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
