"""Only this file sees an example of README or recipes that does not run as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXTS = ("README.md", "docs/recipes.md")
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def snippets(name):
    """Split what one text has into what a plain Python runs and what torchrun starts."""
    found = FENCED.findall((ROOT / name).read_text(encoding="utf-8"))
    ranks = [text for text in found if text.startswith("# torchrun")]
    return [text for text in found if text not in ranks], ranks


def run(text, folder, *launcher):
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "error::UserWarning", *launcher, str(path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_recipes_run_one_after_the_other_as_printed(tmp_path):
    run("\n".join(snippets("docs/recipes.md")[0]), tmp_path)


def test_the_example_of_the_readme_is_complete_and_short(tmp_path):
    (example,) = snippets("README.md")[0]
    assert len(example.splitlines()) <= 12
    assert "Advice: " in run(example, tmp_path)
    assert {path.name for path in (tmp_path / "diagnosis").iterdir()} == {
        "diagnosis.html",
        "diagnosis.json",
    }


def test_the_example_for_several_processes_runs_under_torchrun(tmp_path):
    (text,) = [text for name in TEXTS for text in snippets(name)[1]]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    assert run(text, tmp_path, *launcher).strip()
