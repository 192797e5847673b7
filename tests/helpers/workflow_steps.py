"""Runs the ``run:`` steps of a composite action as a runner would, in bash, with its variables.

Only what this project's action uses: expressions that name an input, a step's output or a folder of
the runner, and steps without a condition. No torch.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Runner:
    """A runner's folders and files, made below ``root``."""

    root: Path
    action: Path
    inputs: Mapping[str, str]
    path: Sequence[Path] = ()
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = (self.action / "action.yml").read_text(encoding="utf-8")
        self.steps: list[dict[str, Any]] = yaml.safe_load(text)["runs"]["steps"]
        declared = yaml.safe_load(text)["inputs"]
        if unknown := set(self.inputs) - set(declared):
            raise ValueError(f"no such input: {sorted(unknown)}")
        self.given = {name: entry["default"] for name, entry in declared.items()} | {**self.inputs}
        self.workspace, self.temp = self.root / "workspace", self.root / "temp"
        self.summary, self.output = self.root / "summary.md", self.root / "output"
        for folder in (self.workspace, self.temp):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the step of this name; its outputs are known to the steps after it."""
        (step,) = (step for step in self.steps if step["name"] == name)
        self.output.write_text("", encoding="utf-8")
        folder = self.workspace / self.value(step.get("working-directory", "."))
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env |= {key: self.value(value) for key, value in step.get("env", {}).items()}
        env |= {
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(self.output),
            "PATH": os.pathsep.join([*map(str, self.path), os.environ["PATH"]]),
        }
        # What GitHub calls for `shell: bash`.
        shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            shell, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout
        )
        for line in self.output.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            self.outputs[f"steps.{step['id']}.outputs.{key}"] = value
        return done

    def value(self, text: str) -> str:
        """The text with its expressions evaluated."""
        known = {f"inputs.{name}": value for name, value in self.given.items()} | self.outputs
        known |= {"github.action_path": str(self.action), "runner.temp": str(self.temp)}
        return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda found: known[found[1]], str(text))
