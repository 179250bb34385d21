"""`python -m tests.fuzz [--cases N]`: a long campaign; exit code 1 if anything fails."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests import twin
from tests.e2e.service import serve
from tests.fuzz.campaign import SETTINGS, run_until


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=5_000, help="at least so many (5000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = twin.write(folder / "twin.gguf", file_type="F32")
        with serve(model, folder, **SETTINGS) as service:
            document = f"{service.url}/openapi.json"
            campaign = run_until(args.cases, document, folder, "--max-examples", "100")
    print(campaign.log)
    print(f"{campaign.num_cases} cases, {'none failed' if campaign.passed else 'see above'}")
    sys.exit(0 if campaign.passed else 1)


if __name__ == "__main__":
    main()
