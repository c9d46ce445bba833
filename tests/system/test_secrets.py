"""What must never be in a store, and what must never be run from one."""

from __future__ import annotations

import pickle
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from casting_tune.analysis import run_results
from casting_tune.execution import runner
from casting_tune.models import build
from casting_tune.planning.options import Options
from casting_tune.store import artifacts, verify


class Evil:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("evil"),))


def test_no_secret_home_host_or_user_is_in_any_byte_of_a_store_and_no_pickle_in_it_is_run(
    tiny: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = ("canary-secret-5e", "canary-home", "canary-host", "canary-user")
    monkeypatch.setenv("REGISTRY_PASSWORD", canaries[0])
    monkeypatch.setenv("HOME", f"/srv/{canaries[1]}")
    monkeypatch.setattr(platform, "node", lambda: canaries[2])
    monkeypatch.setattr("casting_tune.store.redact._user", lambda: canaries[3])
    monkeypatch.chdir(tmp_path)
    real, root = build.model, tmp_path / "results"

    def build_model(name: str, **more: object) -> object:
        if more["seed"] == 0:
            raise RuntimeError(
                f"{canaries[3]} at {canaries[2]} has no /srv/{canaries[1]}/key for {canaries[0]}"
            )
        return real(name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "model", build_model)
    for folder in ("checkpoints", "trials/tiny", "epochs/tiny"):
        (root / folder).mkdir(parents=True)
        for name in ("a1-1.pt", "a1-1.pkl", ".a1-1.parquet"):
            (root / folder / name).write_bytes(pickle.dumps(Evil()))
    options = Options(
        sweep=str(tiny), data=drawn, results=root, inline=True, baselines=False, retries=0
    )
    prepared = runner.prepare(options, say=lambda _: None)
    for planned in prepared.plan.planned:  # where a trial would look for its checkpoint
        artifacts.checkpoint(prepared.store, planned.cell_id).write_bytes(pickle.dumps(Evil()))
    assert runner.execute(prepared, on_event=lambda _: None) == 4
    monkeypatch.setattr(build, "model", real)
    options = replace(options, retry_failed=True)
    assert runner.execute(runner.prepare(options, say=lambda _: None), on_event=lambda _: None) == 2
    assert runner.execute(runner.prepare(options, say=lambda _: None), on_event=lambda _: None) == 0
    run_results.load(prepared.store, "tiny")
    verify.verify(prepared.store)
    assert not (tmp_path / "evil").exists()
    errors = [error for error in prepared.store.read("trials")["error"].to_pylist() if error]
    assert "RuntimeError: USER at HOST has no ~/key for $REGISTRY_PASSWORD" in errors
    traces = [text for text in prepared.store.read("trials")["traceback"].to_pylist() if text]
    assert any(
        text.endswith("RuntimeError: USER at HOST has no ~/key for $REGISTRY_PASSWORD\n")
        for text in traces
    )
    content = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert not [
        file for file, held in content.items() for canary in canaries if canary.encode() in held
    ]
