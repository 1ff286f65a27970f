"""Makes the site's page and explorer of the built-in pair's audit, in a minute or two: python docs/built_in_audit.py"""

import shutil
import sys
import tempfile
from pathlib import Path

import sae_lens_crosscoder as slc

FOLDER = Path(__file__).parent / "audits" / "built-in-pair"
FILES = ("audit.html", "audit.json", "explorer.html")


def make(folder: Path) -> None:
    """Run the audit that docs/audit.md names, and keep what it writes for readers."""
    with tempfile.TemporaryDirectory() as work:
        slc.audit(slc.workflows.AuditConfig("tiny-base", "tiny-chat", output_path=work))
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(Path(work, name), folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
