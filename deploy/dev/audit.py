"""`python -m deploy.dev.audit`: look for known vulnerabilities in the locked dependencies.

pip-audit asks the OSV database. Exits 0 when it knows none, or cannot be reached (which is said), 1 when it knows one,
and 2 when the audit itself went wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from deploy.dev.processes import ROOT

LOCK = ROOT / "deploy" / "requirements.txt"
_OUT_OF_REACH = ("ConnectionError", "Timeout", "Could not connect")


def main() -> int:
    """Print what was found, a line a vulnerability; returns the exit code. `OSV_URL` names another database."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service=osv", "--format=json"]
    command += ["--progress-spinner=off", "--disable-pip", "--require-hashes", f"--requirement={LOCK}"]
    if url := os.environ.get("OSV_URL"):
        command.append(f"--osv-url={url}")
    audit = subprocess.run(command, capture_output=True, text=True, check=False)
    if not audit.stdout:
        *_, reason = audit.stderr.strip().splitlines() or ["pip-audit said nothing"]
        is_out_of_reach = any(sign in audit.stderr for sign in _OUT_OF_REACH)
        print(f"audit {'skipped' if is_out_of_reach else 'failed'}: {reason}")
        return 0 if is_out_of_reach else 2
    packages = json.loads(audit.stdout)["dependencies"]
    found = [(package, vulnerability) for package in packages for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no release"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, mended by {mended}")
    print(f"{len(packages)} packages audited, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
