"""Injects all faults, or those whose names contain a word that is given, and writes what they cost into the page."""

import sys
import tempfile
import time
import traceback
from pathlib import Path

from faults.cases import FAULTS
from faults.lab import Lab
from faults.page import entry_of, put


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    if not chosen:
        sys.exit(f"no fault has one of {words} in its name; there are: {', '.join(fault.name for fault in FAULTS)}")
    failed = 0
    with tempfile.TemporaryDirectory() as place, Lab(Path(place)) as lab:
        for number, fault in enumerate(chosen, 1):
            began = time.monotonic()
            print(f"{number}/{len(chosen)} {fault.name}: {fault.injected}", flush=True)
            try:
                verdict = fault.run(lab)
            except Exception:
                failed += 1
                traceback.print_exc()
                put(fault.name, None)
                continue
            put(fault.name, entry_of(fault, verdict))
            failed += not verdict.clean
            said = "nothing lost" if verdict.clean else "NOT CLEAN"
            print(f"    {said} in {time.monotonic() - began:.0f} s: {verdict}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
