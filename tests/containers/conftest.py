"""Fixtures for the containers: one engine and one set of images for all tests.

Where no engine can be had, the tests are skipped with the reason.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers import images, release_before
from tests.containers.engine import Engine, NoEngine, why_none
from tests.containers.stacks import RELEASE_BEFORE
from tests.containers.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def steps(request: pytest.FixtureRequest) -> Steps:
    """Return what prints the steps while the tests run, past the capture of pytest."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)  # noqa: T201 - this is the transcript

    return Steps(say)


@pytest.fixture(scope="session")
def engine(steps: Steps) -> Iterator[Engine]:
    """Yield a running engine. Skip the tests where none can be had."""
    reason = why_none()
    if reason is not None:
        pytest.skip(reason)
    # A short path: a socket's may have 107 characters.
    running = Engine(Path(tempfile.mkdtemp(prefix="broker-engine-")))
    try:
        with steps.step("dockerd starts"):
            running.__enter__()
    except NoEngine as error:
        pytest.skip(str(error))
    try:
        steps.say(f"engine: {running.docker('version', '--format', 'dockerd {{.Server.Version}}').strip()}")
        yield running
    finally:
        with steps.step("dockerd stops, and its files, mounts and bridge are removed"):
            running.__exit__()


@pytest.fixture(scope="session")
def base(engine: Engine, steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of the base image, made of Debian's packages. Skip the tests where no container can run."""
    with steps.step(f"the base image is made of Debian's packages under the name {images.base_name()}"):
        images.make_base(engine, tmp_path_factory.mktemp("base"))
    try:
        engine.docker("run", "--rm", images.base_name(), "true")
    except AssertionError as error:
        pytest.skip(f"this machine's engine runs no container: {error}")
    return images.base_name()


@pytest.fixture(scope="session")
def images_built(engine: Engine, base: str, steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Build the image and the stand-ins, both at once."""

    def build_broker() -> None:
        with steps.step("docker build, as docs/deployment.md has it"):
            images.build(engine, images.BROKER)

    def make_stand_ins() -> None:
        with steps.step("the stand-ins are made: DynamoDB Local, Valkey, Prometheus"):
            images.make_stand_ins(engine, tmp_path_factory.mktemp("stand-ins"))

    with ThreadPoolExecutor(2) as pool:
        for building in [pool.submit(build_broker), pool.submit(make_stand_ins)]:
            building.result()


@pytest.fixture(scope="session")
def tree_before(engine: Engine, base: str, steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tree of the release before, whose image is built. Skip where the checkout lacks its commit."""
    tree = tmp_path_factory.mktemp("release") / "before"
    try:
        release_before.unpack(tree)
    except release_before.NoSuchRelease as error:
        pytest.skip(str(error))
    assert images.base_name(tree) == base
    with steps.step(f"docker build of the release before ({release_before.name()[:12]})"):
        images.build(engine, RELEASE_BEFORE, tree=tree)
    return tree
