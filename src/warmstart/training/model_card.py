"""What a saved checkpoint says about itself: `warmstart.json` for programs, `README.md` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from warmstart.provenance import environment

_CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline_tag}
base_model: {quoted_base}
tags:
- warmstart
---

# {title}

`{base}` fine-tuned for {task} on {training_rows:,} rows, {steps:,} optimizer steps, with warmstart.

## Use

```python
import warmstart as ws

pipe = ws.load("path/to/this/folder")
pipe("some text")
```

It is a standard checkpoint: transformers' Auto classes load it as well.

## Validation

{validation}

## Training

{settings}
"""


@dataclass(frozen=True)
class RunFacts:
    """The facts of a finished run that travel with its checkpoint."""

    task: str
    base: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]  # on the validation rows
    training_rows: int
    validation_rows: int
    steps: int
    lineage: Sequence[Mapping[str, Any]] = ()  # where the run was forced to go on with something else

    def files(self) -> dict[str, bytes]:
        """The two files, by name."""
        facts = {**asdict(self), "versions": environment()["packages"]}
        return {
            "warmstart.json": (json.dumps(facts, indent=2) + "\n").encode(),
            "README.md": self._card().encode("utf-8", "backslashreplace"),
        }

    def _card(self) -> str:
        rows = [f"| {name} | {m['value']:.4f} | {m['lo']:.4f} – {m['hi']:.4f} |" for name, m in self.metrics.items()]
        heading = [f"On {self.validation_rows:,} rows:", "", "| metric | value | 95 % interval |", "|---|---|---|"]
        return _CARD.format(
            pipeline_tag="feature-extraction" if self.task == "sentence-embedding" else self.task,
            base=self.base,
            quoted_base=json.dumps(self.base),  # a JSON string is a YAML string, whatever a path may hold
            title=f"{self.task} from {self.base}",
            task=self.task,
            training_rows=self.training_rows,
            steps=self.steps,
            validation="\n".join([*heading, *rows]) if rows else "Not measured: the run had no validation rows.",
            settings="\n".join(f"- `{name}`: {value}" for name, value in self.settings.items()),
        )
