"""`python -m deploy.dev.audit`: look for known vulnerabilities in the locked dependencies.

pip-audit asks the OSV database. The exit code is 0 if the database knows none or does not answer (the output says so),
1 if it knows one, and 2 if the audit itself fails.
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
    """Print one line for each vulnerability; return the exit code. `OSV_URL` names another database."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service=osv", "--format=json"]
    command += ["--progress-spinner=off", "--disable-pip", "--require-hashes", f"--requirement={LOCK}"]
    if url := os.environ.get("OSV_URL"):
        command.append(f"--osv-url={url}")
    audit = subprocess.run(command, capture_output=True, text=True, check=False)
    if not audit.stdout:
        *_, reason = audit.stderr.strip().splitlines() or ["pip-audit said nothing"]
        is_out_of_reach = any(sign in audit.stderr for sign in _OUT_OF_REACH)
        if is_out_of_reach:
            print(f"audit skipped: the database does not answer. Run it again with a network. ({reason})")
            return 0
        print(f"audit failed: {reason}")
        return 2
    packages = json.loads(audit.stdout)["dependencies"]
    found = [(package, vulnerability) for package in packages for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed by {fixed}")
    print(f"{len(packages)} packages audited, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
